DROP TRIGGER chunk_emptied ON chunk;
REVOKE TRUNCATE ON document, chunk, memory_key, memory_blob, outbox, dead_letter
    FROM membank_admin;
DROP VIEW document_load;
CREATE OR REPLACE FUNCTION document_revise() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
BEGIN
    NEW.content_hash := encode(sha256(convert_to(NEW.title || E'\n' || NEW.text, 'UTF8')), 'hex');
    IF TG_OP = 'UPDATE' AND NEW.content_hash <> OLD.content_hash THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;
DROP INDEX document_unserved;
ALTER TABLE document DROP COLUMN text_hash;
DROP FUNCTION document_load(), chunk_emptied(), next_tenant(bigint), document_hash(text, text);
