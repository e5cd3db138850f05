-- Who may do what, with the rows that policies.sql lets them have. The roles belong to the server;
-- app/db/schema.py makes them and gives them their passwords, before this runs as membank_owner:
--
--   membank_owner   owns all of this. No service logs in as it.
--   membank_app     the service: reads for one principal of one tenant, and writes nothing.
--   membank_worker  workers and relay: encode, for one tenant at a time.
--   membank_admin   administrators, through the program or psql.
--   membank_tenant  nobody; a person of a tenant logs in under a member of it (tenant_role).
--
-- None of them is superuser, and none has BYPASSRLS.

-- Everyone may call a new function until this is said, and these answer with more than their
-- caller's rights, or change rows.
REVOKE ALL ON FUNCTION signed_context, role_tenant, find_tenant, find_key, next_tenant,
    paused_tenants, changing_banks, gone_tenants, job_retry, job_cancel, job_discard, bank_fill,
    bank_tidy, bank_covered, bank_switch, request_begin, request_end, audit_expire, audit_erase FROM PUBLIC;
-- Nobody may put these on a table of their own.
REVOKE ALL ON FUNCTION document_queue, chunk_queue, file_queue, object_let_go, objects_let_go
    FROM PUBLIC;

GRANT SELECT ON alembic_version TO membank_app, membank_worker, membank_admin;
GRANT EXECUTE ON FUNCTION find_tenant TO membank_app, membank_worker, membank_admin;
-- A person of a tenant too: the stamp of an event asks which principal it is. None.
GRANT EXECUTE ON FUNCTION signed_context
    TO membank_app, membank_worker, membank_admin, membank_tenant;
-- When and who are not for the writer to say: audit_stamp().
GRANT INSERT (tenant_id, action, bank_id, document_ids, chunk_ids, detail) ON audit_event
    TO membank_app, membank_worker, membank_admin, membank_tenant;

---------------------------------------------------------------------------------------------------
-- membank_app
---------------------------------------------------------------------------------------------------

GRANT SELECT ON tenant, principal, principal_group, group_member, encoder_profile, bank, bank_member,
    tenant_key, tenant_quota, tenant_usage, file, bank_file, document, chunk, memory_key,
    memory_blob, outbox, dead_letter, document_status, bank_status, bank_entry TO membank_app;
GRANT EXECUTE ON FUNCTION find_key, request_begin, request_end TO membank_app;

---------------------------------------------------------------------------------------------------
-- membank_worker
---------------------------------------------------------------------------------------------------

GRANT SELECT ON tenant, principal, principal_group, group_member, encoder_profile, bank, tenant_quota,
    document_status, bank_status, bank_entry TO membank_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON document, chunk, memory_key, memory_blob, outbox, dead_letter,
    bank_member, file, bank_file TO membank_worker;
GRANT UPDATE (profile_id, next_profile_id) ON bank TO membank_worker;
GRANT SELECT, INSERT, UPDATE (destroyed_at) ON tenant_key TO membank_worker;
GRANT SELECT, DELETE ON object_gone TO membank_worker;
GRANT EXECUTE ON FUNCTION next_tenant, paused_tenants, changing_banks, gone_tenants, bank_fill,
    bank_tidy, bank_covered, bank_switch, audit_expire TO membank_worker;

---------------------------------------------------------------------------------------------------
-- membank_admin
---------------------------------------------------------------------------------------------------

GRANT SELECT, INSERT, UPDATE, DELETE ON tenant, principal, principal_group, group_member, api_key,
    encoder_profile, bank, tenant_role, tenant_key, tenant_quota, tenant_usage, document,
    bank_member, file, bank_file, chunk, memory_key, memory_blob, object_gone, outbox, dead_letter
    TO membank_admin;
-- TRUNCATE document CASCADE empties all that was made of documents, and needs the right to each.
GRANT TRUNCATE ON document, chunk, memory_key, memory_blob, outbox, dead_letter TO membank_admin;
GRANT SELECT ON audit_event, document_status, bank_status, bank_entry, job TO membank_admin;
GRANT INSERT ON document_load TO membank_admin;
GRANT EXECUTE ON FUNCTION next_tenant, paused_tenants, changing_banks, gone_tenants, job_retry,
    job_cancel, job_discard, bank_fill, bank_tidy, bank_covered, bank_switch, audit_expire,
    audit_erase TO membank_admin;

---------------------------------------------------------------------------------------------------
-- membank_tenant
---------------------------------------------------------------------------------------------------

GRANT SELECT ON tenant, encoder_profile, bank, chunk, memory_key, outbox, dead_letter, tenant_quota,
    tenant_usage, document_status, bank_status, job TO membank_tenant;
GRANT SELECT, DELETE ON document, principal, principal_group, group_member, bank_member
    TO membank_tenant;
-- Not the columns by which workers and triggers count: a wrong number there stops the work of all.
GRANT INSERT (tenant_id, bank_id, id, source, title, text, access, metadata),
    UPDATE (id, source, title, text, access, metadata) ON document TO membank_tenant;
GRANT INSERT (tenant_id, name), UPDATE (name) ON principal, principal_group TO membank_tenant;
GRANT INSERT (tenant_id, group_id, principal_id) ON group_member TO membank_tenant;
GRANT INSERT (tenant_id, bank_id, grantee, role), UPDATE (grantee, role) ON bank_member
    TO membank_tenant;
GRANT INSERT ON document_load TO membank_tenant;
GRANT EXECUTE ON FUNCTION role_tenant TO membank_tenant;
