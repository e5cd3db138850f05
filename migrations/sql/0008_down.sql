DROP TRIGGER document_quota ON document;
DROP TRIGGER audit_ingest ON document;
DROP TRIGGER audit_change ON document;
DROP TRIGGER audit_forget ON document;
DROP TRIGGER audit_empty ON document;
DROP TRIGGER audit_right ON bank_member;
DROP TRIGGER audit_right ON group_member;
DROP TRIGGER audit_right ON api_key;
DROP TABLE audit_event, tenant_quota, tenant_usage;
DROP FUNCTION document_quota, request_begin, request_end, audit_stamp, audit_is_final, audit_expire, audit_erase, audit_ingest,
    audit_change, audit_forget, audit_empty, audit_right;
-- What is encrypted opens no more without its key's name: it is deleted, and encoded again.
ALTER TABLE memory_blob NO FORCE ROW LEVEL SECURITY;
DELETE FROM memory_blob WHERE key_version IS NOT NULL;
ALTER TABLE memory_blob FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_blob DROP COLUMN key_version;
DROP TABLE tenant_key;
COMMENT ON TABLE memory_blob IS
    'What attention reads: packed keys and values. As secret as the text. Rows are written once.';
COMMENT ON COLUMN memory_blob.sha256 IS NULL;
REVOKE EXECUTE ON FUNCTION signed_context() FROM membank_tenant;
