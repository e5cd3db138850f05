ALTER FUNCTION bank_covered RESET plan_cache_mode;
DROP TRIGGER file_quota ON file;
DROP FUNCTION file_quota();
ALTER TABLE tenant_quota DROP COLUMN upload_bytes;
DROP TRIGGER file_queue ON bank_file;
DROP FUNCTION file_queue();
CREATE OR REPLACE FUNCTION job_cancel(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
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
DROP VIEW job;
CREATE VIEW job WITH (security_invoker = true) AS
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
GRANT SELECT ON job TO membank_tenant;
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
       CASE WHEN e.state = 'storing' AND e.created_at < now() - interval '1 hour' THEN 'failed'
            WHEN e.state = 'storing' THEN 'in_progress'
            WHEN e.state <> 'stored' THEN e.state
            WHEN e.lost <> 'cancelled' THEN 'failed'
            WHEN e.lost IS NOT NULL THEN 'cancelled'
            WHEN e.waiting THEN 'in_progress'
            ELSE 'completed' END AS status,
       CASE WHEN e.state = 'storing' AND e.created_at < now() - interval '1 hour'
            THEN 'storing it was cut off: attach the file again'
            WHEN e.state = 'stored' AND e.lost <> 'cancelled' THEN e.lost
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

-- A file that waits has nobody to store it any more; it counts as failed after an hour.
ALTER TABLE outbox NO FORCE ROW LEVEL SECURITY;
DELETE FROM outbox WHERE file_id IS NOT NULL;
ALTER TABLE outbox FORCE ROW LEVEL SECURITY;
ALTER TABLE outbox DROP COLUMN file_id, ALTER COLUMN document_id SET NOT NULL;
ALTER TABLE bank_file DROP COLUMN access;
COMMENT ON TABLE outbox IS
    'Work to do, the only truth of it: split a document (chunk_id null) or encode a chunk.';
COMMENT ON COLUMN outbox.priority IS
    'Higher goes first within a tenant and profile: 1 for an edited document, 0 for a new one, -1'
    ' for what a change of profile encodes anew.';
COMMENT ON COLUMN bank_file.state IS
    'storing: is being read. stored: all its documents are there. failed: not all of them, or none.';
