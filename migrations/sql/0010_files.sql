ALTER TABLE bank ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN bank.metadata IS 'What its makers note about it. The program reads nothing of it.';

CREATE TABLE file (
    tenant_id    bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id           text NOT NULL CHECK (length(id) BETWEEN 1 AND 100),
    principal_id bigint,
    filename     text NOT NULL CHECK (length(filename) BETWEEN 1 AND 1000),
    purpose      text NOT NULL CHECK (length(purpose) BETWEEN 1 AND 100),
    bytes        bigint NOT NULL,
    content      bytea STORAGE EXTERNAL NOT NULL,
    sha256       text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id)
        ON DELETE SET NULL (principal_id)
);
CREATE INDEX file_principal ON file (tenant_id, principal_id, created_at);
COMMENT ON TABLE file IS 'A file as it was uploaded. For who uploaded it, and for administrators.';
COMMENT ON COLUMN file.id IS 'file- and 144 random bits.';
COMMENT ON COLUMN file.principal_id IS 'Who uploaded it. Null: someone who was deleted since.';
COMMENT ON COLUMN file.filename IS 'What the uploader calls it. Nothing is ever opened by it.';

CREATE TABLE bank_file (
    tenant_id    bigint NOT NULL,
    bank_id      bigint NOT NULL,
    file_id      text NOT NULL,
    principal_id bigint,
    batch_id     text,
    attributes   jsonb NOT NULL DEFAULT '{}',
    state        text NOT NULL DEFAULT 'storing'
        CHECK (state IN ('storing', 'stored', 'failed', 'cancelled')),
    error_code   text,
    error        text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, bank_id, file_id),
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, file_id) REFERENCES file (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id)
        ON DELETE SET NULL (principal_id)
);
CREATE INDEX bank_file_file ON bank_file (tenant_id, file_id);
CREATE INDEX bank_file_principal ON bank_file (tenant_id, principal_id);
COMMENT ON TABLE bank_file IS 'A file whose documents a bank has, or was to have.';
COMMENT ON COLUMN bank_file.principal_id IS 'Who put it there.';
COMMENT ON COLUMN bank_file.batch_id IS 'The files that were put there in one call; null: it alone.';
COMMENT ON COLUMN bank_file.attributes IS 'They are part of the metadata of its documents too.';
COMMENT ON COLUMN bank_file.state IS
    'storing: is being read. stored: all its documents are there. failed: not all of them, or none.';

-- One file may give many documents; a document is of the file that gave it last.
ALTER TABLE document ADD COLUMN file_id text,
    ADD FOREIGN KEY (tenant_id, bank_id, file_id)
        REFERENCES bank_file (tenant_id, bank_id, file_id) ON DELETE CASCADE;
CREATE INDEX document_file ON document (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL;
COMMENT ON COLUMN document.file_id IS 'The uploaded file that gave it, with which it goes.';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['file', 'bank_file'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('CREATE POLICY administrator ON %I TO membank_admin'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO membank_admin', t);
        EXECUTE format('CREATE POLICY tenant_floor ON %I AS RESTRICTIVE'
            ' TO membank_app, membank_worker'
            ' USING (tenant_id = (SELECT current_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT current_tenant()))', t);
        EXECUTE format('CREATE POLICY worker ON %I TO membank_worker'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO membank_worker', t);
        EXECUTE format('CREATE POLICY tenant_role_floor ON %I AS RESTRICTIVE TO membank_tenant'
            ' USING (tenant_id = (SELECT role_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT role_tenant()))', t);
        EXECUTE format('GRANT SELECT ON %I TO membank_app', t);
    END LOOP;
END $$;
CREATE POLICY reader ON file FOR SELECT TO membank_app
    USING (principal_id = (SELECT current_principal()));
-- Who put a file into a bank sees what became of it, and so does who may read any of what it gave.
CREATE POLICY reader ON bank_file FOR SELECT TO membank_app
    USING (bank_id = ANY ((SELECT current_banks())::bigint[])
        AND (principal_id = (SELECT current_principal())
            OR EXISTS (SELECT FROM document d WHERE d.tenant_id = bank_file.tenant_id
                AND d.bank_id = bank_file.bank_id AND d.file_id = bank_file.file_id)));

-- How far the work is on what one may read. So the views tell readers of their documents.
CREATE POLICY tenant_floor ON outbox AS RESTRICTIVE TO membank_app
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY reader ON outbox FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = outbox.tenant_id
        AND d.bank_id = outbox.bank_id AND d.id = outbox.document_id));
CREATE POLICY reader ON dead_letter FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = dead_letter.tenant_id
        AND d.bank_id = dead_letter.bank_id AND d.id = dead_letter.document_id));
GRANT SELECT ON outbox, dead_letter, bank_status, document_status TO membank_app;

-- A bank's files and, as files of their own, the documents that came in another way.
CREATE VIEW bank_entry WITH (security_invoker = true) AS
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
COMMENT ON VIEW bank_entry IS
    'A bank''s files and, as files of their own, documents that came in another way; how far each is.';
COMMENT ON COLUMN bank_entry.document_id IS 'Where it is no uploaded file.';
COMMENT ON COLUMN bank_entry.status IS
    'in_progress, completed, failed (some of it, or all) or cancelled.';
GRANT SELECT ON bank_entry TO membank_app, membank_worker, membank_admin;
