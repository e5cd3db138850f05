DROP VIEW job, document_status, bank_status;
DROP TRIGGER bank_profile ON bank;
DROP TRIGGER bank_profile_changed ON bank;
-- A chunk could wait, or have failed, once for each profile: what is of the bank's is kept. The
-- owner is bound by policies too, and there is none for it.
ALTER TABLE outbox NO FORCE ROW LEVEL SECURITY;
ALTER TABLE dead_letter NO FORCE ROW LEVEL SECURITY;
ALTER TABLE bank NO FORCE ROW LEVEL SECURITY;
DELETE FROM outbox o USING bank b WHERE b.tenant_id = o.tenant_id AND b.id = o.bank_id
    AND o.chunk_id IS NOT NULL AND o.profile_id <> b.profile_id;
DELETE FROM dead_letter l USING bank b WHERE b.tenant_id = l.tenant_id AND b.id = l.bank_id
    AND l.profile_id <> b.profile_id;
ALTER TABLE outbox FORCE ROW LEVEL SECURITY;
ALTER TABLE dead_letter FORCE ROW LEVEL SECURITY;
ALTER TABLE bank FORCE ROW LEVEL SECURITY;
ALTER TABLE dead_letter DROP COLUMN profile_id;
DROP INDEX outbox_split;
ALTER TABLE outbox DROP CONSTRAINT outbox_once,
    ADD UNIQUE NULLS NOT DISTINCT (tenant_id, bank_id, document_id, chunk_id);
DROP FUNCTION changing_banks(), bank_switch(bigint, bigint), bank_covered(bigint, bigint),
    bank_fill(bigint, bigint), bank_tidy(bigint, bigint), bank_profile(), bank_profile_changed();
DROP POLICY worker ON bank;
DROP POLICY found_in_change ON bank;
REVOKE UPDATE (profile_id, next_profile_id) ON bank FROM membank_worker;
ALTER TABLE bank DROP COLUMN next_profile_id, DROP COLUMN switched_at;

CREATE OR REPLACE FUNCTION document_queue() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT d.tenant_id, d.bank_id, d.id, NULL, b.profile_id, d.revision, (d.revision > 1)::int
    FROM changed d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
    WHERE d.revision <> d.split_revision
    ON CONFLICT (tenant_id, bank_id, document_id, chunk_id) DO UPDATE
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
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT c.tenant_id, c.bank_id, c.document_id, c.id, b.profile_id, 0, (d.revision > 1)::int
    FROM added c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
    JOIN document d ON d.tenant_id = c.tenant_id AND d.bank_id = c.bank_id AND d.id = c.document_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION job_retry(tenant bigint, bank bigint DEFAULT NULL, document text DEFAULT NULL)
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
        SELECT DISTINCT a.tenant_id, a.bank_id, a.document_id, a.chunk_id, b.profile_id,
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

CREATE OR REPLACE FUNCTION job_cancel(tenant bigint, bank bigint DEFAULT NULL, document text DEFAULT NULL)
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
        INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, attempts, error)
        SELECT tenant_id, bank_id, document_id, chunk_id, attempts, 'cancelled' FROM taken
    )
    SELECT count(*) INTO moved FROM taken;
    RETURN moved;
END $$;

CREATE VIEW job WITH (security_invoker = true) AS
SELECT j.tenant_id, t.name AS tenant, j.bank_id, b.name AS bank, j.document_id, j.chunk_id,
       j.state, j.priority, j.attempts, j.next_try, j.last_error, j.since
FROM (
    SELECT tenant_id, bank_id, document_id, chunk_id,
           CASE WHEN lease_until > now() THEN 'encoding' ELSE 'pending' END AS state,
           priority, attempts,
           CASE WHEN lease_until > now() THEN NULL ELSE not_before END AS next_try,
           last_error, created_at AS since
    FROM outbox
    UNION ALL
    SELECT tenant_id, bank_id, document_id, chunk_id, 'failed', NULL, attempts, NULL, error,
           failed_at
    FROM dead_letter WHERE NOT discarded
) j
JOIN tenant t ON t.id = j.tenant_id
JOIN bank b ON b.tenant_id = j.tenant_id AND b.id = j.bank_id;
COMMENT ON VIEW job IS 'Work that waits, is held by a worker, or has failed for good.';
COMMENT ON COLUMN job.chunk_id IS 'The chunk to encode; null where the document is to be split.';
COMMENT ON COLUMN job.state IS
    'pending: waits. encoding: a worker holds it. failed: in dead_letter, nobody tries it again.';
COMMENT ON COLUMN job.priority IS 'Higher goes first within the tenant.';
COMMENT ON COLUMN job.attempts IS 'How often a worker has begun it.';
COMMENT ON COLUMN job.next_try IS 'Not before then. Null while it is held or after it has failed.';
COMMENT ON COLUMN job.last_error IS 'Why the last attempt failed; cancelled if someone did that.';
COMMENT ON COLUMN job.since IS 'Waiting or held: when it was queued. Failed: when it failed.';
GRANT SELECT ON job TO membank_admin;

CREATE VIEW document_status WITH (security_invoker = true) AS
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
) o
CROSS JOIN LATERAL (
    SELECT count(*) AS failed, max(attempts) AS attempts,
           (array_agg(error ORDER BY id DESC))[1] AS last_error
    FROM dead_letter WHERE tenant_id = d.tenant_id AND bank_id = d.bank_id AND document_id = d.id
        AND NOT discarded
) l
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, count(k.chunk_id) AS memories
    FROM chunk LEFT JOIN memory_key k ON k.tenant_id = chunk.tenant_id AND k.chunk_id = chunk.id
        AND k.profile_id = b.profile_id
    WHERE chunk.tenant_id = d.tenant_id AND chunk.bank_id = d.bank_id
        AND chunk.document_id = d.id
) c;
COMMENT ON VIEW document_status IS 'How far each document is encoded.';
COMMENT ON COLUMN document_status.status IS
    'pending: work waits. encoding: a worker holds some. ready: all is done. failed: some is given up.';
COMMENT ON COLUMN document_status.attempts IS 'Most attempts at one piece of its open work.';
COMMENT ON COLUMN document_status.next_try IS 'When the first of its waiting work is due.';
COMMENT ON COLUMN document_status.last_error IS 'Why it failed for good, else last time.';
COMMENT ON COLUMN document_status.staleness IS 'Age of its oldest work that is not done.';
COMMENT ON COLUMN document_status.coverage IS
    'Part of its chunks that have a memory, 0 to 1; null while it has no chunks.';

CREATE VIEW bank_status WITH (security_invoker = true) AS
SELECT b.tenant_id, t.name AS tenant, b.id AS bank_id, b.name AS bank, b.profile_id,
       (SELECT count(*) FROM document d
        WHERE d.tenant_id = b.tenant_id AND d.bank_id = b.id) AS documents,
       c.chunks, k.memories, o.pending, l.failed, t.paused,
       greatest(o.attempts, l.attempts, 0) AS attempts, o.next_try,
       coalesce(l.last_error, o.last_error) AS last_error, now() - o.since AS staleness,
       k.memories / nullif(c.chunks, 0)::float8 AS coverage
FROM bank b
JOIN tenant t ON t.id = b.tenant_id
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks FROM chunk WHERE tenant_id = b.tenant_id AND bank_id = b.id
) c
CROSS JOIN LATERAL (
    SELECT count(*) AS memories FROM memory_key
    WHERE tenant_id = b.tenant_id AND bank_id = b.id AND profile_id = b.profile_id
) k
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, max(attempts) AS attempts, min(created_at) AS since,
           min(not_before) FILTER (WHERE lease_until IS NULL OR lease_until <= now()) AS next_try,
           max(last_error) AS last_error
    FROM outbox WHERE tenant_id = b.tenant_id AND bank_id = b.id
) o
CROSS JOIN LATERAL (
    SELECT count(*) AS failed, max(attempts) AS attempts,
           (array_agg(error ORDER BY id DESC))[1] AS last_error
    FROM dead_letter WHERE tenant_id = b.tenant_id AND bank_id = b.id AND NOT discarded
) l;
COMMENT ON VIEW bank_status IS 'How far each bank is encoded.';
COMMENT ON COLUMN bank_status.memories IS 'Chunks encoded under the bank''s profile.';
COMMENT ON COLUMN bank_status.pending IS 'Rows of the outbox, held by a worker or not.';
COMMENT ON COLUMN bank_status.failed IS 'Rows of dead_letter that are not discarded.';
COMMENT ON COLUMN bank_status.paused IS 'Whether workers leave the tenant''s work alone.';
COMMENT ON COLUMN bank_status.attempts IS 'Most attempts at one piece of its open work.';
COMMENT ON COLUMN bank_status.next_try IS 'When the first of its waiting work is due.';
COMMENT ON COLUMN bank_status.last_error IS
    'Why something failed for good, the latest of them; else why something failed last time.';
COMMENT ON COLUMN bank_status.staleness IS 'Age of its oldest work that is not done.';
COMMENT ON COLUMN bank_status.coverage IS
    'Part of its chunks that have a memory, 0 to 1; null while it has no chunks.';

GRANT SELECT ON document_status, bank_status TO membank_worker, membank_admin;
