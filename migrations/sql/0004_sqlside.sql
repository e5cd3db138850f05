-- What title and text hash to. Immutable in truth: the encoding is named.
CREATE FUNCTION document_hash(title text, body text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT encode(sha256(convert_to(title || E'\n' || body, 'UTF8')), 'hex')
$$;

-- A generated column is computed by the table itself, also where no trigger fires: in a restore,
-- on a subscriber, after DISABLE TRIGGER. Where it is not the trigger's hash, nothing is served.
ALTER TABLE document ADD COLUMN text_hash text NOT NULL
    GENERATED ALWAYS AS (document_hash(title, text)) STORED;
COMMENT ON COLUMN document.text_hash IS
    'The same, kept by the table. Differs from content_hash when a change passed by the triggers;'
    ' then none of the document is served, and a reconciliation queues it.';
-- The few that a search leaves out and a reconciliation looks at.
CREATE INDEX document_unserved ON document (tenant_id, bank_id, id)
    WHERE revision <> split_revision OR text_hash <> content_hash;

CREATE OR REPLACE FUNCTION document_revise() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    NEW.content_hash := document_hash(NEW.title, NEW.text);
    IF TG_OP = 'UPDATE' AND NEW.content_hash <> OLD.content_hash THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

-- For a reconciliation, which goes from tenant to tenant: ids, and no names.
CREATE FUNCTION next_tenant(after bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public AS $$
    SELECT min(id) FROM tenant WHERE id > after
$$;
REVOKE ALL ON FUNCTION next_tenant(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION next_tenant(bigint) TO membank_worker, membank_admin;

-- COPY refuses tables with row-level security, but not a view whose trigger takes the rows. The
-- view keeps nothing, so there is nothing to read, to empty or to forget.
CREATE VIEW document_load WITH (security_invoker = true) AS
SELECT NULL::text AS tenant, NULL::text AS bank, NULL::text AS id, NULL::text AS text,
       NULL::text AS title, NULL::text AS source, NULL::text[] AS access, NULL::jsonb AS metadata
WHERE false;
COMMENT ON VIEW document_load IS
    'COPY or INSERT documents here by names: new ones are made, known ones changed. Always empty.';
COMMENT ON COLUMN document_load.title IS 'Left out: the id, or what a known document has.';
COMMENT ON COLUMN document_load.source IS 'Left out: the id, or what a known document has.';
COMMENT ON COLUMN document_load.access IS 'Left out: {everyone}, or what a known document has.';
COMMENT ON COLUMN document_load.metadata IS 'Left out: {}, or what a known document has.';

CREATE FUNCTION document_load() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
DECLARE
    place text := format('document %L of bank %L of tenant %L', NEW.id, NEW.bank, NEW.tenant);
    known_tenant bigint;
    known_bank bigint;
    entry text;
BEGIN
    SELECT id INTO known_tenant FROM tenant WHERE name = NEW.tenant;
    IF known_tenant IS NULL THEN
        RAISE EXCEPTION '%: there is no such tenant', place USING ERRCODE = 'foreign_key_violation',
            HINT = 'Correct the name, or make the tenant: membank tenant add.';
    END IF;
    SELECT id INTO known_bank FROM bank WHERE tenant_id = known_tenant AND name = NEW.bank;
    IF known_bank IS NULL THEN
        RAISE EXCEPTION '%: the tenant has no such bank', place
            USING ERRCODE = 'foreign_key_violation',
            HINT = 'Correct the name, or make the bank: membank bank add.';
    END IF;
    IF NEW.id IS NULL OR length(NEW.id) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION '%: the id has no 1 to 512 characters', place
            USING ERRCODE = 'check_violation', HINT = 'Give each document a short id of its own.';
    END IF;
    IF NEW.text IS NULL OR NEW.text !~ '\S' THEN
        RAISE EXCEPTION '%: the text is empty', place USING ERRCODE = 'check_violation',
            HINT = 'Leave the row out, or DELETE the document if it is to go.';
    END IF;
    FOREACH entry IN ARRAY coalesce(NEW.access, '{}') LOOP
        IF entry IS NULL OR entry !~ '^(everyone|(principal|group):.+)$' THEN
            RAISE EXCEPTION '%: % is no access entry', place, quote_nullable(entry)
                USING ERRCODE = 'check_violation',
                HINT = 'Write everyone, principal:NAME or group:NAME.';
        END IF;
    END LOOP;
    INSERT INTO document AS d (tenant_id, bank_id, id, source, title, text, access, metadata)
    VALUES (known_tenant, known_bank, NEW.id, coalesce(NEW.source, NEW.id),
        coalesce(NEW.title, NEW.id), NEW.text, coalesce(NEW.access, '{everyone}'),
        coalesce(NEW.metadata, '{}'))
    ON CONFLICT (tenant_id, bank_id, id) DO UPDATE
    SET text = excluded.text, title = coalesce(NEW.title, d.title),
        source = coalesce(NEW.source, d.source), access = coalesce(NEW.access, d.access),
        metadata = coalesce(NEW.metadata, d.metadata);
    RETURN NEW;
END $$;

CREATE TRIGGER document_load INSTEAD OF INSERT ON document_load
    FOR EACH ROW EXECUTE FUNCTION document_load();
REVOKE ALL ON document_load FROM PUBLIC;
GRANT INSERT ON document_load TO membank_admin;

-- TRUNCATE document CASCADE empties all that was made of documents, and needs the right to each.
GRANT TRUNCATE ON document, chunk, memory_key, memory_blob, outbox, dead_letter TO membank_admin;

-- Chunks alone may be emptied too. Then every document waits to be split again.
CREATE FUNCTION chunk_emptied() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    UPDATE document SET split_revision = 0;
    RETURN NULL;
END $$;
CREATE TRIGGER chunk_emptied AFTER TRUNCATE ON chunk
    FOR EACH STATEMENT EXECUTE FUNCTION chunk_emptied();
ALTER TABLE chunk ENABLE ALWAYS TRIGGER chunk_emptied;
