-- A file that was put into a bank is work like any other: leased, tried again, never forgotten.
ALTER TABLE bank_file ADD COLUMN access text[];
COMMENT ON COLUMN bank_file.access IS
    'The list of its documents that bring none. Null: everyone, or what a known one has.';
COMMENT ON COLUMN bank_file.state IS
    'storing: waits for a worker, which reads it. stored: all its documents are there. failed: not'
    ' all of them, or none.';

ALTER TABLE outbox ALTER COLUMN document_id DROP NOT NULL,
    ADD COLUMN file_id text,
    ADD FOREIGN KEY (tenant_id, bank_id, file_id)
        REFERENCES bank_file (tenant_id, bank_id, file_id) ON DELETE CASCADE,
    ADD CONSTRAINT outbox_what CHECK ((document_id IS NULL) <> (file_id IS NULL)
        AND (file_id IS NULL OR chunk_id IS NULL));
CREATE UNIQUE INDEX outbox_file ON outbox (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL;
COMMENT ON TABLE outbox IS
    'Work to do, the only truth of it: store a file, split a document (chunk_id null) or encode a'
    ' chunk.';
COMMENT ON COLUMN outbox.priority IS
    'Higher goes first within a tenant and profile: 1 for an edited document, 0 for a new one, -1'
    ' for uploaded files and for what a change of profile encodes anew.';
COMMENT ON COLUMN outbox.file_id IS 'The uploaded file whose documents are to be stored.';

-- After whatever else of its tenant waits: a batch of files is read no faster than it is encoded. A
-- file that is put in again, or gets other attributes meanwhile, is work anew: who holds it then
-- finishes in vain.
CREATE FUNCTION file_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.state = 'storing' THEN
        PERFORM FROM bank b WHERE b.tenant_id = NEW.tenant_id AND b.id = NEW.bank_id FOR SHARE;
        INSERT INTO outbox (tenant_id, bank_id, file_id, profile_id, revision, priority)
        SELECT b.tenant_id, b.id, NEW.file_id, b.profile_id, 0, -1
        FROM bank b WHERE b.tenant_id = NEW.tenant_id AND b.id = NEW.bank_id
        ON CONFLICT (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL DO UPDATE
        SET profile_id = excluded.profile_id, attempts = 0, not_before = now(),
            lease_token = NULL, lease_until = NULL, last_error = NULL;
    ELSE
        DELETE FROM outbox o WHERE o.tenant_id = NEW.tenant_id AND o.bank_id = NEW.bank_id
            AND o.file_id = NEW.file_id;
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION file_queue() FROM PUBLIC;
CREATE TRIGGER file_queue AFTER INSERT OR UPDATE OF state, attributes, access ON bank_file
    FOR EACH ROW EXECUTE FUNCTION file_queue();
ALTER TABLE bank_file ENABLE ALWAYS TRIGGER file_queue;

-- What was cut off before has no list: its documents must not be for everyone by that.
ALTER TABLE bank_file NO FORCE ROW LEVEL SECURITY;
UPDATE bank_file SET state = 'failed', error_code = 'server_error',
    error = 'storing it was cut off: attach the file again' WHERE state = 'storing';
ALTER TABLE bank_file FORCE ROW LEVEL SECURITY;

CREATE OR REPLACE VIEW bank_entry WITH (security_invoker = true) AS
WITH work AS NOT MATERIALIZED (
    SELECT d.tenant_id, d.bank_id, d.id, d.file_id, d.created_at, d.metadata,
           d.revision <> d.split_revision OR EXISTS (
               SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id AND o.bank_id = d.bank_id
               AND o.document_id = d.id
               AND (o.chunk_id IS NULL OR o.profile_id = b.profile_id)) AS waiting,
           (SELECT l.error FROM dead_letter l WHERE l.tenant_id = d.tenant_id
               AND l.bank_id = d.bank_id AND l.document_id = d.id
               AND (l.chunk_id IS NULL OR l.profile_id = b.profile_id)
               ORDER BY l.error = 'cancelled', l.id DESC LIMIT 1) AS error
    FROM document d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
)
SELECT e.tenant_id, e.bank_id, e.file_id, e.document_id, e.batch_id, e.created_at, e.attributes,
       CASE WHEN e.state = 'storing' THEN 'in_progress'
            WHEN e.state <> 'stored' THEN e.state
            WHEN e.lost <> 'cancelled' THEN 'failed'
            WHEN e.lost IS NOT NULL THEN 'cancelled'
            WHEN e.waiting THEN 'in_progress'
            ELSE 'completed' END AS status,
       CASE WHEN e.state = 'stored' AND e.lost <> 'cancelled' THEN e.lost
            ELSE e.error END AS error,
       coalesce(e.error_code, 'server_error') AS error_code
FROM (
    SELECT f.tenant_id, f.bank_id, f.file_id, NULL AS document_id, f.batch_id, f.created_at,
           f.attributes, f.state, f.error_code, f.error, w.waiting, w.lost
    FROM bank_file f
    CROSS JOIN LATERAL (
        SELECT bool_or(waiting) AS waiting,
               (array_agg(error ORDER BY error = 'cancelled') FILTER (WHERE error IS NOT NULL))[1]
                   AS lost
        FROM work WHERE work.tenant_id = f.tenant_id AND work.bank_id = f.bank_id
            AND work.file_id = f.file_id
    ) w
    UNION ALL
    SELECT tenant_id, bank_id, NULL, id, NULL, created_at, metadata, 'stored', NULL, NULL,
           waiting, error
    FROM work WHERE file_id IS NULL
) e;

CREATE OR REPLACE VIEW job WITH (security_invoker = true) AS
SELECT j.tenant_id, t.name AS tenant, j.bank_id, b.name AS bank, j.document_id, j.chunk_id,
       j.state, j.priority, j.attempts, j.next_try, j.last_error, j.since, j.profile_id, j.file_id
FROM (
    SELECT tenant_id, bank_id, document_id, chunk_id,
           CASE WHEN lease_until > now() THEN 'encoding' ELSE 'pending' END AS state,
           priority, attempts,
           CASE WHEN lease_until > now() THEN NULL ELSE not_before END AS next_try,
           last_error, created_at AS since, profile_id, file_id
    FROM outbox
    UNION ALL
    SELECT tenant_id, bank_id, document_id, chunk_id, 'failed', NULL, attempts, NULL, error,
           failed_at, profile_id, NULL
    FROM dead_letter WHERE NOT discarded
) j
JOIN tenant t ON t.id = j.tenant_id
JOIN bank b ON b.tenant_id = j.tenant_id AND b.id = j.bank_id;
COMMENT ON COLUMN job.file_id IS
    'The uploaded file whose documents are to be stored; the document is null then.';

-- As before, and files that wait: by their id in the document's place.
CREATE OR REPLACE FUNCTION job_cancel(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    banks bigint[];
    names text[];
    moved bigint;
    files bigint;
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
    -- Files have no dead letter: they say themselves that they were cancelled, and a trigger takes
    -- their work away.
    UPDATE bank_file f SET state = 'cancelled'
    WHERE f.tenant_id = tenant AND f.bank_id = coalesce(bank, f.bank_id) AND f.state = 'storing'
        AND f.file_id = coalesce(document, f.file_id)
        AND EXISTS (SELECT FROM outbox o WHERE o.tenant_id = f.tenant_id AND o.bank_id = f.bank_id
            AND o.file_id = f.file_id AND (o.lease_until IS NULL OR o.lease_until < now()));
    GET DIAGNOSTICS files = ROW_COUNT;
    RETURN moved + files;
END $$;

ALTER TABLE tenant_quota ADD COLUMN upload_bytes bigint CHECK (upload_bytes >= 0);
COMMENT ON COLUMN tenant_quota.upload_bytes IS 'Of uploaded files, as they were sent.';

-- Counted only where there is a limit. Whoever uploads at the same time does not see the other's
-- file yet, so both may pass.
CREATE FUNCTION file_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    over record;
BEGIN
    SELECT t.name, q.upload_bytes, a.new INTO over
    FROM (SELECT tenant_id, sum(bytes) AS new FROM added GROUP BY tenant_id) a
    JOIN tenant_quota q ON q.tenant_id = a.tenant_id AND q.upload_bytes IS NOT NULL
    JOIN tenant t ON t.id = a.tenant_id
    WHERE (SELECT sum(f.bytes) FROM file f WHERE f.tenant_id = a.tenant_id) > q.upload_bytes
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'tenant % may hold % bytes of uploaded files and has no room for % more:'
            ' delete some, or raise the limit (membank tenant quota --upload-bytes)',
            quote_literal(over.name), over.upload_bytes, over.new USING ERRCODE = 'MBQ01';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER file_quota AFTER INSERT ON file
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION file_quota();
ALTER TABLE file ENABLE ALWAYS TRIGGER file_quota;

-- Workers do not ask for plans of their own any more (app/db/session.py); what the relay asks at
-- every poll, of banks of any size, does so itself.
ALTER FUNCTION bank_covered SET plan_cache_mode = force_custom_plan;
