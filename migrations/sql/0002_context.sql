ALTER TABLE chunk ADD COLUMN before text NOT NULL DEFAULT '';
COMMENT ON COLUMN chunk.before IS
    'What stands before it in its document, as far as it has that in sight when it is encoded.';

DROP TRIGGER chunk_is_final ON chunk;
CREATE TRIGGER chunk_is_final BEFORE UPDATE ON chunk
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text OR OLD.before IS DISTINCT FROM NEW.before
        OR OLD.hash IS DISTINCT FROM NEW.hash)
    EXECUTE FUNCTION chunk_is_final();
ALTER TABLE chunk ENABLE ALWAYS TRIGGER chunk_is_final;
