DROP VIEW job, document_status, bank_status;
DROP FUNCTION job_retry, job_cancel, job_discard, paused_tenants;
ALTER TABLE dead_letter DROP COLUMN traceback, DROP COLUMN discarded;
ALTER TABLE tenant DROP COLUMN paused;
DROP INDEX outbox_due;
ALTER TABLE outbox DROP COLUMN priority;
CREATE INDEX outbox_due ON outbox (tenant_id, profile_id, chunk_id NULLS FIRST, id);

CREATE OR REPLACE FUNCTION document_queue() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)
    SELECT d.tenant_id, d.bank_id, d.id, NULL, b.profile_id, d.revision
    FROM changed d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
    WHERE d.revision <> d.split_revision
    ON CONFLICT (tenant_id, bank_id, document_id, chunk_id) DO UPDATE
    SET revision = excluded.revision, profile_id = excluded.profile_id, attempts = 0,
        not_before = now(), lease_token = NULL, lease_until = NULL, last_error = NULL
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
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)
    SELECT c.tenant_id, c.bank_id, c.document_id, c.id, b.profile_id, 0
    FROM added c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE VIEW document_status WITH (security_invoker = true) AS
SELECT d.tenant_id, d.bank_id, d.id, d.source, d.revision,
       CASE
           WHEN EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = d.tenant_id
               AND l.bank_id = d.bank_id AND l.document_id = d.id) THEN 'failed'
           WHEN NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
               AND o.bank_id = d.bank_id AND o.document_id = d.id) THEN 'ready'
           WHEN EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
               AND o.bank_id = d.bank_id AND o.document_id = d.id
               AND o.lease_until > now()) THEN 'encoding'
           ELSE 'pending'
       END AS status
FROM document d;
COMMENT ON VIEW document_status IS 'pending, encoding, ready or failed, for each document.';

CREATE VIEW bank_status WITH (security_invoker = true) AS
SELECT b.tenant_id, t.name AS tenant, b.id AS bank_id, b.name AS bank, b.profile_id,
       (SELECT count(*) FROM document d
        WHERE d.tenant_id = b.tenant_id AND d.bank_id = b.id) AS documents,
       (SELECT count(*) FROM chunk c
        WHERE c.tenant_id = b.tenant_id AND c.bank_id = b.id) AS chunks,
       (SELECT count(*) FROM memory_key k WHERE k.tenant_id = b.tenant_id
        AND k.bank_id = b.id AND k.profile_id = b.profile_id) AS memories,
       (SELECT count(*) FROM outbox o
        WHERE o.tenant_id = b.tenant_id AND o.bank_id = b.id) AS pending,
       (SELECT count(*) FROM dead_letter l
        WHERE l.tenant_id = b.tenant_id AND l.bank_id = b.id) AS failed
FROM bank b JOIN tenant t ON t.id = b.tenant_id;
COMMENT ON VIEW bank_status IS 'How far each bank is encoded.';

GRANT SELECT ON document_status, bank_status TO membank_worker, membank_admin;
