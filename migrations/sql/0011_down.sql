-- A row whose bytes are an object cannot be said any more: it is deleted, and encoded again. Move
-- them into the database first (membank store move --to postgres) to keep them.
ALTER TABLE memory_blob NO FORCE ROW LEVEL SECURITY;
DROP TRIGGER object_let_go ON memory_blob;
DROP TRIGGER objects_let_go ON memory_blob;
DELETE FROM memory_blob WHERE payload IS NULL;
DROP POLICY of_triggers ON memory_blob;
ALTER TABLE memory_blob FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_blob DROP CONSTRAINT memory_blob_place, DROP CONSTRAINT memory_blob_own,
    DROP COLUMN location, DROP COLUMN size, ALTER COLUMN payload SET NOT NULL;
COMMENT ON COLUMN memory_blob.payload IS NULL;
DROP TABLE object_gone;
DROP FUNCTION object_let_go, objects_let_go, gone_tenants;
