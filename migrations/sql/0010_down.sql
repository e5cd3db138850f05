DROP VIEW bank_entry;
REVOKE SELECT ON outbox, dead_letter, bank_status, document_status FROM membank_app;
DROP POLICY reader ON dead_letter;
DROP POLICY reader ON outbox;
DROP POLICY tenant_floor ON outbox;
DROP POLICY reader ON bank_file;
-- Documents stay; what they were uploaded as goes.
ALTER TABLE document DROP COLUMN file_id;
DROP TABLE bank_file, file;
ALTER TABLE bank DROP COLUMN metadata;
