ALTER TABLE bank ADD COLUMN next_profile_id text, ADD COLUMN switched_at timestamptz,
    ADD FOREIGN KEY (tenant_id, next_profile_id) REFERENCES encoder_profile (tenant_id, id);
COMMENT ON COLUMN bank.next_profile_id IS
    'Set it, and every chunk is encoded under that profile too; then it becomes profile_id. Null'
    ' drops the change.';
COMMENT ON COLUMN bank.switched_at IS 'When profile_id last changed. Null: never.';
CREATE INDEX bank_next_profile ON bank (tenant_id, next_profile_id)
    WHERE next_profile_id IS NOT NULL;

-- A chunk can wait for both profiles; a document is split once for both.
ALTER TABLE outbox DROP CONSTRAINT outbox_tenant_id_bank_id_document_id_chunk_id_key,
    ADD CONSTRAINT outbox_once UNIQUE (tenant_id, bank_id, document_id, chunk_id, profile_id);
CREATE UNIQUE INDEX outbox_split ON outbox (tenant_id, bank_id, document_id)
    WHERE chunk_id IS NULL;
COMMENT ON COLUMN outbox.profile_id IS
    'Only workers of this profile take it. A split is for those of the bank''s profile.';
COMMENT ON COLUMN outbox.priority IS
    'Higher goes first within a tenant and profile: 1 for an edited document, 0 for a new one, -1'
    ' for what a change of profile encodes anew.';

ALTER TABLE dead_letter ADD COLUMN profile_id text;
-- The owner is bound by policies too, and there is none for it.
ALTER TABLE dead_letter NO FORCE ROW LEVEL SECURITY;
ALTER TABLE bank NO FORCE ROW LEVEL SECURITY;
UPDATE dead_letter l SET profile_id = b.profile_id FROM bank b
WHERE b.tenant_id = l.tenant_id AND b.id = l.bank_id AND l.chunk_id IS NOT NULL;
ALTER TABLE dead_letter FORCE ROW LEVEL SECURITY;
ALTER TABLE bank FORCE ROW LEVEL SECURITY;
COMMENT ON COLUMN dead_letter.profile_id IS
    'That the chunk was to be encoded under; null where splitting failed.';

-- Workers hold a bank (FOR SHARE) while they add work for its profiles, and switch it.
GRANT UPDATE (profile_id, next_profile_id) ON bank TO membank_worker;
CREATE POLICY worker ON bank FOR UPDATE TO membank_worker USING (true) WITH CHECK (true);

-- The relay asks before it has a tenant: ids, and no names.
CREATE POLICY found_in_change ON bank FOR SELECT TO membank_owner
    USING (next_profile_id IS NOT NULL);
CREATE FUNCTION changing_banks() RETURNS TABLE (tenant_id bigint, bank_id bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public AS $$
    SELECT b.tenant_id, b.id FROM bank b WHERE b.next_profile_id IS NOT NULL ORDER BY 1, 2
$$;
REVOKE ALL ON FUNCTION changing_banks() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changing_banks() TO membank_worker, membank_admin;

-- Whoever changes a bank's profiles holds the bank against those that add chunks or splits to it,
-- and waits for nobody from then on: what others hold (SKIP LOCKED) is left to the next look. Where
-- a row was changed since the statement began, Postgres waits all the same; so the program holds
-- the bank before it locks a document.
CREATE FUNCTION bank_fill(tenant bigint, bank bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public AS $$
    WITH lacking AS (
        SELECT c.tenant_id, c.bank_id, c.document_id, c.id, b.next_profile_id
        FROM bank b
        JOIN chunk c ON c.tenant_id = b.tenant_id AND c.bank_id = b.id
        JOIN document d ON d.tenant_id = c.tenant_id AND d.bank_id = c.bank_id
            AND d.id = c.document_id
        WHERE b.tenant_id = tenant AND b.id = bank AND b.next_profile_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = c.tenant_id
                AND m.chunk_id = c.id AND m.profile_id = b.next_profile_id)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = c.tenant_id
                AND l.chunk_id = c.id AND l.profile_id = b.next_profile_id)
        ORDER BY c.id
        FOR KEY SHARE OF c SKIP LOCKED FOR KEY SHARE OF d SKIP LOCKED
    ), queued AS (
        INSERT INTO outbox
            (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
        SELECT tenant_id, bank_id, document_id, id, next_profile_id, 0, -1 FROM lacking
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT count(*) FROM queued
$$;
COMMENT ON FUNCTION bank_fill IS
    'Queues the chunks that have no memory under the bank''s next profile. How many.';

CREATE FUNCTION bank_tidy(tenant bigint, bank bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public AS $$
    WITH astray AS (
        SELECT o.id, o.chunk_id, b.profile_id
        FROM outbox o JOIN bank b ON b.tenant_id = o.tenant_id AND b.id = o.bank_id
        WHERE o.tenant_id = tenant AND o.bank_id = bank AND o.profile_id <> b.profile_id
            AND (o.chunk_id IS NULL OR o.profile_id IS DISTINCT FROM b.next_profile_id)
        FOR UPDATE OF o SKIP LOCKED
    ), dropped AS (
        DELETE FROM outbox o USING astray a
        WHERE o.tenant_id = tenant AND o.id = a.id AND a.chunk_id IS NOT NULL
        RETURNING 1
    ), handed_over AS (
        UPDATE outbox o SET profile_id = a.profile_id, attempts = 0, not_before = now(),
            lease_token = NULL, lease_until = NULL, last_error = NULL
        FROM astray a WHERE o.tenant_id = tenant AND o.id = a.id AND a.chunk_id IS NULL
        RETURNING 1
    ), outlived AS (
        SELECT l.id FROM dead_letter l JOIN bank b ON b.tenant_id = l.tenant_id AND b.id = l.bank_id
        WHERE l.tenant_id = tenant AND l.bank_id = bank AND l.profile_id <> b.profile_id
            AND l.profile_id IS DISTINCT FROM b.next_profile_id
        FOR UPDATE OF l SKIP LOCKED
    ), forgotten AS (
        DELETE FROM dead_letter l USING outlived x WHERE l.tenant_id = tenant AND l.id = x.id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM dropped) + (SELECT count(*) FROM handed_over)
        + (SELECT count(*) FROM forgotten)
$$;
COMMENT ON FUNCTION bank_tidy IS
    'Drops work and failures of profiles that the bank no longer has; splits go to its profile.';

-- Nothing that is found now is lost by the switch: work that has no memory under either profile
-- does not hold it up, and goes on after it.
CREATE FUNCTION bank_covered(tenant bigint, bank bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
DECLARE
    serving text;
    next text;
BEGIN
    SELECT b.profile_id, b.next_profile_id INTO serving, next
    FROM bank b WHERE b.tenant_id = tenant AND b.id = bank;
    -- The cheap looks first: the relay asks at every poll.
    IF next IS NULL
        OR EXISTS (SELECT FROM outbox o JOIN memory_key k ON k.tenant_id = o.tenant_id
            AND k.chunk_id = o.chunk_id AND k.profile_id = serving
            WHERE o.tenant_id = tenant AND o.profile_id = next AND o.bank_id = bank)
        OR EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = tenant AND l.bank_id = bank
            AND l.profile_id = next AND NOT l.discarded)
    THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM memory_key k
        WHERE k.tenant_id = tenant AND k.bank_id = bank AND k.profile_id = serving
            AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = k.tenant_id
                AND m.chunk_id = k.chunk_id AND m.profile_id = next)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = k.tenant_id
                AND l.chunk_id = k.chunk_id AND l.profile_id = next))
    THEN
        PERFORM bank_fill(tenant, bank);
        RETURN false;
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION bank_covered IS
    'Whether all that is served has a memory under the next profile, or was discarded for it.';

CREATE FUNCTION bank_switch(tenant bigint, bank bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public SET lock_timeout = '1s' AS $$
BEGIN
    IF NOT bank_covered(tenant, bank) THEN
        RETURN false;
    END IF;
    PERFORM FROM bank b WHERE b.tenant_id = tenant AND b.id = bank FOR NO KEY UPDATE;
    IF NOT bank_covered(tenant, bank) THEN
        RETURN false;
    END IF;
    UPDATE bank b SET profile_id = b.next_profile_id, next_profile_id = NULL
    WHERE b.tenant_id = tenant AND b.id = bank;
    RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN false;  -- someone adds documents in a long transaction; there is another time
END $$;
COMMENT ON FUNCTION bank_switch IS
    'Makes the next profile the bank''s if it covers what is served. Whether it did.';
REVOKE ALL ON FUNCTION bank_fill, bank_tidy, bank_covered, bank_switch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bank_fill, bank_tidy, bank_covered, bank_switch
    TO membank_worker, membank_admin;

CREATE FUNCTION bank_profile() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
DECLARE
    seen integer[];
BEGIN
    IF NEW.profile_id <> OLD.profile_id THEN
        IF NEW.profile_id IS DISTINCT FROM OLD.next_profile_id THEN
            RAISE EXCEPTION 'bank % has memories of profile % only', quote_literal(NEW.name),
                OLD.profile_id USING ERRCODE = 'restrict_violation',
                HINT = 'Set next_profile_id: they are made first, then the bank is switched.';
        END IF;
        NEW.switched_at := now();
    END IF;
    IF NEW.next_profile_id = NEW.profile_id THEN
        RAISE EXCEPTION 'bank % is encoded under profile % already', quote_literal(NEW.name),
            NEW.profile_id USING ERRCODE = 'restrict_violation',
            HINT = 'To drop a change that is under way, set next_profile_id to null.';
    END IF;
    IF NEW.next_profile_id IS NOT NULL THEN
        SELECT array_agg(coalesce(substring(p.spec ->> 'context' FROM '^\d+')::integer, 0)
            ORDER BY p.id = NEW.next_profile_id)
        INTO seen FROM encoder_profile p
        WHERE p.tenant_id = NEW.tenant_id AND p.id IN (NEW.profile_id, NEW.next_profile_id);
        IF seen[2] > seen[1] THEN
            RAISE EXCEPTION 'bank % keeps % tokens before each chunk, and the next profile needs %',
                quote_literal(NEW.name), seen[1], seen[2] USING ERRCODE = 'restrict_violation',
                HINT = 'Make a new bank and ingest again, or take no greater MEMBANK_CONTEXT.';
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION bank_profile_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    PERFORM bank_tidy(NEW.tenant_id, NEW.id);
    PERFORM bank_fill(NEW.tenant_id, NEW.id);
    RETURN NULL;
END $$;

CREATE TRIGGER bank_profile BEFORE UPDATE ON bank FOR EACH ROW
    WHEN ((OLD.profile_id, OLD.next_profile_id)
        IS DISTINCT FROM (NEW.profile_id, NEW.next_profile_id))
    EXECUTE FUNCTION bank_profile();
CREATE TRIGGER bank_profile_changed AFTER UPDATE ON bank FOR EACH ROW
    WHEN ((OLD.profile_id, OLD.next_profile_id)
        IS DISTINCT FROM (NEW.profile_id, NEW.next_profile_id))
    EXECUTE FUNCTION bank_profile_changed();
ALTER TABLE bank ENABLE ALWAYS TRIGGER bank_profile;
ALTER TABLE bank ENABLE ALWAYS TRIGGER bank_profile_changed;

CREATE OR REPLACE FUNCTION document_queue() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    -- In a statement before the one that reads its profiles, so that this sees what was awaited.
    PERFORM FROM bank b WHERE (b.tenant_id, b.id) IN (
        SELECT d.tenant_id, d.bank_id FROM changed d WHERE d.revision <> d.split_revision)
    ORDER BY b.tenant_id, b.id FOR SHARE;
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT d.tenant_id, d.bank_id, d.id, NULL, b.profile_id, d.revision, (d.revision > 1)::int
    FROM changed d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
    WHERE d.revision <> d.split_revision
    ON CONFLICT (tenant_id, bank_id, document_id) WHERE chunk_id IS NULL DO UPDATE
    SET revision = excluded.revision, profile_id = excluded.profile_id,
        priority = excluded.priority, attempts = 0, not_before = now(), lease_token = NULL,
        lease_until = NULL, last_error = NULL
    WHERE outbox.revision <> excluded.revision;
    -- A split that failed for good is over: the document is split by now, or waits for it again.
    DELETE FROM dead_letter l USING changed d
    WHERE l.tenant_id = d.tenant_id AND l.bank_id = d.bank_id AND l.document_id = d.id
        AND l.chunk_id IS NULL;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION chunk_queue() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    PERFORM FROM bank b WHERE (b.tenant_id, b.id) IN (SELECT c.tenant_id, c.bank_id FROM added c)
    ORDER BY b.tenant_id, b.id FOR SHARE;
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT c.tenant_id, c.bank_id, c.document_id, c.id, p.id, 0, (d.revision > 1)::int
    FROM added c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
    JOIN document d ON d.tenant_id = c.tenant_id AND d.bank_id = c.bank_id AND d.id = c.document_id
    CROSS JOIN LATERAL (VALUES (b.profile_id), (b.next_profile_id)) p (id)
    WHERE p.id IS NOT NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION job_retry(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
DECLARE
    banks bigint[];
    names text[];
    moved bigint;
BEGIN
    PERFORM FROM bank b WHERE b.tenant_id = tenant AND b.id = coalesce(bank, b.id)
    ORDER BY b.id FOR SHARE;
    SELECT array_agg(locked.bank_id), array_agg(locked.id) INTO banks, names FROM (
        SELECT d.bank_id, d.id FROM document d WHERE d.tenant_id = tenant
            AND d.bank_id = coalesce(bank, d.bank_id) AND d.id = coalesce(document, d.id)
            AND EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = d.tenant_id
                AND l.bank_id = d.bank_id AND l.document_id = d.id AND NOT l.discarded)
        ORDER BY d.bank_id, d.id FOR NO KEY UPDATE) locked;
    WITH again AS (
        DELETE FROM dead_letter l USING unnest(banks, names) mine(bank_id, id)
        WHERE l.tenant_id = tenant AND l.bank_id = mine.bank_id AND l.document_id = mine.id
            AND NOT l.discarded
        RETURNING l.*
    ), queued AS (
        INSERT INTO outbox
            (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
        SELECT DISTINCT a.tenant_id, a.bank_id, a.document_id, a.chunk_id,
               coalesce(a.profile_id, b.profile_id),
               CASE WHEN a.chunk_id IS NULL THEN d.revision ELSE 0 END, (d.revision > 1)::int
        FROM again a
        JOIN bank b ON b.tenant_id = a.tenant_id AND b.id = a.bank_id
        JOIN document d ON d.tenant_id = a.tenant_id AND d.bank_id = a.bank_id
            AND d.id = a.document_id
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO moved FROM again;
    RETURN moved;
END $$;

CREATE OR REPLACE FUNCTION job_cancel(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
DECLARE
    banks bigint[];
    names text[];
    moved bigint;
BEGIN
    SELECT array_agg(locked.bank_id), array_agg(locked.id) INTO banks, names FROM (
        SELECT d.bank_id, d.id FROM document d WHERE d.tenant_id = tenant
            AND d.bank_id = coalesce(bank, d.bank_id) AND d.id = coalesce(document, d.id)
            AND EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
                AND o.bank_id = d.bank_id AND o.document_id = d.id)
        ORDER BY d.bank_id, d.id FOR NO KEY UPDATE) locked;
    WITH waiting AS (
        SELECT o.id FROM outbox o JOIN unnest(banks, names) mine(bank_id, id)
            ON o.bank_id = mine.bank_id AND o.document_id = mine.id
        WHERE o.tenant_id = tenant AND (o.lease_until IS NULL OR o.lease_until < now())
        FOR UPDATE OF o SKIP LOCKED
    ), taken AS (
        DELETE FROM outbox o USING waiting w WHERE o.tenant_id = tenant AND o.id = w.id
        RETURNING o.*
    ), kept AS (
        INSERT INTO dead_letter
            (tenant_id, bank_id, document_id, chunk_id, profile_id, attempts, error)
        SELECT tenant_id, bank_id, document_id, chunk_id,
               CASE WHEN chunk_id IS NOT NULL THEN profile_id END, attempts, 'cancelled'
        FROM taken
    )
    SELECT count(*) INTO moved FROM taken;
    RETURN moved;
END $$;

CREATE OR REPLACE VIEW job WITH (security_invoker = true) AS
SELECT j.tenant_id, t.name AS tenant, j.bank_id, b.name AS bank, j.document_id, j.chunk_id,
       j.state, j.priority, j.attempts, j.next_try, j.last_error, j.since, j.profile_id
FROM (
    SELECT tenant_id, bank_id, document_id, chunk_id,
           CASE WHEN lease_until > now() THEN 'encoding' ELSE 'pending' END AS state,
           priority, attempts,
           CASE WHEN lease_until > now() THEN NULL ELSE not_before END AS next_try,
           last_error, created_at AS since, profile_id
    FROM outbox
    UNION ALL
    SELECT tenant_id, bank_id, document_id, chunk_id, 'failed', NULL, attempts, NULL, error,
           failed_at, profile_id
    FROM dead_letter WHERE NOT discarded
) j
JOIN tenant t ON t.id = j.tenant_id
JOIN bank b ON b.tenant_id = j.tenant_id AND b.id = j.bank_id;
COMMENT ON COLUMN job.profile_id IS
    'Only workers of this profile take it. Null where splitting has failed.';

CREATE OR REPLACE VIEW document_status WITH (security_invoker = true) AS
SELECT d.tenant_id, d.bank_id, d.id, d.source, d.revision,
       CASE
           WHEN l.failed > 0 THEN 'failed'
           -- Nobody will do what is missing: it was discarded, or deleted by hand.
           WHEN o.waiting = 0 AND (d.revision <> d.split_revision OR c.memories < c.chunks)
               THEN 'failed'
           WHEN o.waiting = 0 THEN 'ready'
           WHEN o.held > 0 THEN 'encoding'
           ELSE 'pending'
       END AS status,
       greatest(o.attempts, l.attempts, 0) AS attempts, o.next_try,
       coalesce(l.last_error, o.last_error) AS last_error, now() - o.since AS staleness,
       c.memories / nullif(c.chunks, 0)::float8 AS coverage
FROM document d
JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, count(*) FILTER (WHERE lease_until > now()) AS held,
           max(attempts) AS attempts, min(created_at) AS since,
           min(not_before) FILTER (WHERE lease_until IS NULL OR lease_until <= now()) AS next_try,
           max(last_error) AS last_error
    FROM outbox WHERE tenant_id = d.tenant_id AND bank_id = d.bank_id AND document_id = d.id
        AND (chunk_id IS NULL OR profile_id = b.profile_id)
) o
CROSS JOIN LATERAL (
    SELECT count(*) AS failed, max(attempts) AS attempts,
           (array_agg(error ORDER BY id DESC))[1] AS last_error
    FROM dead_letter WHERE tenant_id = d.tenant_id AND bank_id = d.bank_id AND document_id = d.id
        AND (chunk_id IS NULL OR profile_id = b.profile_id) AND NOT discarded
) l
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, count(k.chunk_id) AS memories
    FROM chunk LEFT JOIN memory_key k ON k.tenant_id = chunk.tenant_id AND k.chunk_id = chunk.id
        AND k.profile_id = b.profile_id
    WHERE chunk.tenant_id = d.tenant_id AND chunk.bank_id = d.bank_id
        AND chunk.document_id = d.id
) c;
COMMENT ON VIEW document_status IS 'How far each document is encoded under its bank''s profile.';

CREATE OR REPLACE VIEW bank_status WITH (security_invoker = true) AS
SELECT b.tenant_id, t.name AS tenant, b.id AS bank_id, b.name AS bank, b.profile_id,
       (SELECT count(*) FROM document d
        WHERE d.tenant_id = b.tenant_id AND d.bank_id = b.id) AS documents,
       c.chunks, k.memories, o.pending, l.failed, t.paused,
       greatest(o.attempts, l.attempts, 0) AS attempts, o.next_try,
       coalesce(l.last_error, o.last_error) AS last_error, now() - o.since AS staleness,
       k.memories / nullif(c.chunks, 0)::float8 AS coverage,
       b.next_profile_id, k.memories_next, o.pending_next, l.failed_next,
       now() - o.since_next AS staleness_next, b.switched_at, k.throughput,
       make_interval(secs => (o.pending + o.pending_next) / nullif(k.throughput, 0)) AS time_left
FROM bank b
JOIN tenant t ON t.id = b.tenant_id
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks FROM chunk WHERE tenant_id = b.tenant_id AND bank_id = b.id
) c
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE profile_id = b.profile_id) AS memories,
           count(*) FILTER (WHERE profile_id = b.next_profile_id) AS memories_next,
           count(*) FILTER (WHERE encoded_at > now() - interval '1 minute') / 60.0::float8
               AS throughput
    FROM memory_key WHERE tenant_id = b.tenant_id AND bank_id = b.id
        AND profile_id IN (b.profile_id, b.next_profile_id)
) k
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE ours) AS pending, max(attempts) FILTER (WHERE ours) AS attempts,
           min(created_at) FILTER (WHERE ours) AS since,
           min(not_before) FILTER (WHERE ours AND (lease_until IS NULL OR lease_until <= now()))
               AS next_try,
           max(last_error) FILTER (WHERE ours) AS last_error,
           count(*) FILTER (WHERE theirs) AS pending_next,
           min(created_at) FILTER (WHERE theirs) AS since_next
    FROM (SELECT *, chunk_id IS NULL OR profile_id = b.profile_id AS ours,
              chunk_id IS NOT NULL AND profile_id = b.next_profile_id AS theirs
          FROM outbox WHERE tenant_id = b.tenant_id AND bank_id = b.id) w
) o
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE ours) AS failed, max(attempts) FILTER (WHERE ours) AS attempts,
           (array_agg(error ORDER BY id DESC) FILTER (WHERE ours))[1] AS last_error,
           count(*) FILTER (WHERE profile_id = b.next_profile_id) AS failed_next
    FROM (SELECT *, chunk_id IS NULL OR profile_id = b.profile_id AS ours
          FROM dead_letter WHERE tenant_id = b.tenant_id AND bank_id = b.id AND NOT discarded) f
) l;
COMMENT ON COLUMN bank_status.pending IS
    'Rows of the outbox that the bank''s profile waits for, held by a worker or not.';
COMMENT ON COLUMN bank_status.failed IS
    'Rows of dead_letter that are not discarded, of splits and of the bank''s profile.';
COMMENT ON COLUMN bank_status.next_profile_id IS
    'Profile that the bank is being encoded under and will be switched to. Null: none.';
COMMENT ON COLUMN bank_status.memories_next IS 'Chunks encoded under the next profile.';
COMMENT ON COLUMN bank_status.pending_next IS 'Rows of the outbox for the next profile.';
COMMENT ON COLUMN bank_status.failed_next IS
    'Rows of dead_letter for the next profile. While there are any, the bank is not switched.';
COMMENT ON COLUMN bank_status.staleness_next IS 'Age of its oldest work for the next profile.';
COMMENT ON COLUMN bank_status.switched_at IS 'When its profile last changed. Null: never.';
COMMENT ON COLUMN bank_status.throughput IS 'Memories a second, over the last minute.';
COMMENT ON COLUMN bank_status.time_left IS
    'Until all that waits is encoded, at that throughput. Null while nothing is encoded.';
