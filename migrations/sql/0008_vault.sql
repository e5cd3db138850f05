-- Data keys of tenants. What opens a blob lies in the keyring, a folder outside of the database, so
-- that no backup of the database holds it: here are its name and its times.
CREATE TABLE tenant_key (
    tenant_id    bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    version      integer NOT NULL CHECK (version > 0),
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    PRIMARY KEY (tenant_id, version)
);
COMMENT ON TABLE tenant_key IS
    'Versions of the key that a tenant''s memories are encrypted with. New memories get the highest.';
COMMENT ON COLUMN tenant_key.id IS 'Name of its file in the keyring. No secret.';
COMMENT ON COLUMN tenant_key.destroyed_at IS 'When no memory needed it any more and it was deleted.';

ALTER TABLE memory_blob ADD COLUMN key_version integer;
-- Whoever deletes a key gives up what only it opens.
ALTER TABLE memory_blob ADD FOREIGN KEY (tenant_id, key_version)
    REFERENCES tenant_key (tenant_id, version) ON DELETE CASCADE;
CREATE INDEX memory_blob_key ON memory_blob (tenant_id, key_version);
COMMENT ON COLUMN memory_blob.key_version IS
    'Version of the tenant''s key that payload is encrypted with; null: it is not encrypted.';
COMMENT ON COLUMN memory_blob.sha256 IS
    'Of payload as it is stored: of the encrypted bytes where it is encrypted.';
COMMENT ON TABLE memory_blob IS
    'What attention reads: packed keys and values. As secret as the text. Written once, and again'
    ' only to be encrypted under another key.';

ALTER TABLE tenant_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_key FORCE ROW LEVEL SECURITY;
REVOKE ALL ON tenant_key FROM PUBLIC;
CREATE POLICY administrator ON tenant_key TO membank_admin USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_key TO membank_admin;
CREATE POLICY tenant_floor ON tenant_key AS RESTRICTIVE TO membank_app, membank_worker
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY of_the_tenant ON tenant_key FOR SELECT TO membank_app USING (true);
GRANT SELECT ON tenant_key TO membank_app;
CREATE POLICY worker ON tenant_key TO membank_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON tenant_key TO membank_worker;
GRANT UPDATE (destroyed_at) ON tenant_key TO membank_worker;
