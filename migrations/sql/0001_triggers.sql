-- Whoever changes title or text, and by whatever way, makes a new revision; nothing else does.
CREATE FUNCTION document_revise() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    NEW.content_hash := encode(sha256(convert_to(NEW.title || E'\n' || NEW.text, 'UTF8')), 'hex');
    IF TG_OP = 'UPDATE' AND NEW.content_hash <> OLD.content_hash THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER document_revise BEFORE INSERT OR UPDATE ON document
    FOR EACH ROW EXECUTE FUNCTION document_revise();

-- A document whose chunks are behind its text waits to be split. A row that is already there
-- starts afresh, and the worker that may hold it loses its lease.
CREATE FUNCTION document_queue() RETURNS trigger
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

CREATE TRIGGER document_queue_insert AFTER INSERT ON document
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION document_queue();
CREATE TRIGGER document_queue_update AFTER UPDATE ON document
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION document_queue();

CREATE FUNCTION chunk_queue() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)
    SELECT c.tenant_id, c.bank_id, c.document_id, c.id, b.profile_id, 0
    FROM added c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_queue AFTER INSERT ON chunk
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION chunk_queue();

CREATE FUNCTION chunk_is_final() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    RAISE EXCEPTION 'the text of a chunk never changes: update document.text instead'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER chunk_is_final BEFORE UPDATE ON chunk
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text OR OLD.hash IS DISTINCT FROM NEW.hash)
    EXECUTE FUNCTION chunk_is_final();

ALTER TABLE document ENABLE ALWAYS TRIGGER document_revise;
ALTER TABLE document ENABLE ALWAYS TRIGGER document_queue_insert;
ALTER TABLE document ENABLE ALWAYS TRIGGER document_queue_update;
ALTER TABLE chunk ENABLE ALWAYS TRIGGER chunk_queue;
ALTER TABLE chunk ENABLE ALWAYS TRIGGER chunk_is_final;
