DROP TRIGGER chunk_is_final ON chunk;
ALTER TABLE chunk DROP COLUMN before;
CREATE TRIGGER chunk_is_final BEFORE UPDATE ON chunk
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text OR OLD.hash IS DISTINCT FROM NEW.hash)
    EXECUTE FUNCTION chunk_is_final();
ALTER TABLE chunk ENABLE ALWAYS TRIGGER chunk_is_final;
