-- Which rows are whose. Every table forces row-level security, so that the owner is bound by it too.
-- A RESTRICTIVE policy is the floor of a role: whatever else is allowed, only rows of its tenant. A
-- PERMISSIVE one says what of that it may have; without one it has nothing. What a role may do with
-- the rows that it sees is granted in roles.sql.
--
-- (SELECT f()) is computed once a statement, f() for every row.

---------------------------------------------------------------------------------------------------
-- Every table, and the floors
---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    t name;
    tenant name;
BEGIN
    FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind = 'r' AND relname <> 'alembic_version'
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        CONTINUE WHEN t = 'context_key';
        tenant := CASE t WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END;
        -- Who logs in as a tenant's own role has the tenant of the role.
        EXECUTE format('CREATE POLICY tenant_role_floor ON %I AS RESTRICTIVE TO membank_tenant'
            ' USING (%I = (SELECT role_tenant())) WITH CHECK (%2$I = (SELECT role_tenant()))',
            t, tenant);
        -- The services have the tenant that is signed. The outbox has no floor for the worker, which
        -- takes work of all tenants in turn; it holds ids and no text.
        CONTINUE WHEN t IN ('tenant', 'outbox');
        EXECUTE format('CREATE POLICY tenant_floor ON %I AS RESTRICTIVE'
            ' TO membank_app, membank_worker'
            ' USING (tenant_id = (SELECT current_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT current_tenant()))', t);
    END LOOP;
END $$;

CREATE POLICY tenant_floor ON tenant AS RESTRICTIVE TO membank_app, membank_worker
    USING (id = (SELECT current_tenant()));
CREATE POLICY tenant_floor ON outbox AS RESTRICTIVE TO membank_app
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY tenant_floor ON context_key AS RESTRICTIVE
    TO membank_app, membank_worker, membank_tenant USING (false);

---------------------------------------------------------------------------------------------------
-- All rows of the floor, or of all tenants for the administrator
---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    t name;
BEGIN
    -- But for the keys that sign, and for the audit log, which is not changed.
    FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind = 'r' AND relname NOT IN ('alembic_version', 'context_key', 'audit_event')
    LOOP
        EXECUTE format('CREATE POLICY administrator ON %I TO membank_admin'
            ' USING (true) WITH CHECK (true)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['tenant', 'principal', 'principal_group', 'group_member',
        'encoder_profile', 'bank', 'tenant_quota']
    LOOP
        EXECUTE format('CREATE POLICY of_the_tenant ON %I FOR SELECT'
            ' TO membank_app, membank_worker USING (true)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['bank_member', 'tenant_key', 'tenant_usage'] LOOP
        EXECUTE format('CREATE POLICY of_the_tenant ON %I FOR SELECT TO membank_app USING (true)',
            t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['document', 'chunk', 'memory_key', 'memory_blob', 'object_gone',
        'outbox', 'dead_letter', 'bank_member', 'tenant_key', 'file', 'bank_file']
    LOOP
        EXECUTE format('CREATE POLICY worker ON %I TO membank_worker'
            ' USING (true) WITH CHECK (true)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['tenant', 'encoder_profile', 'bank', 'chunk', 'memory_key', 'outbox',
        'dead_letter', 'tenant_quota', 'tenant_usage']
    LOOP
        EXECUTE format('CREATE POLICY tenant_role ON %I FOR SELECT TO membank_tenant USING (true)',
            t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['document', 'principal', 'principal_group', 'group_member',
        'bank_member']
    LOOP
        EXECUTE format('CREATE POLICY tenant_role ON %I TO membank_tenant'
            ' USING (true) WITH CHECK (true)', t);
    END LOOP;
END $$;
-- It holds a bank (FOR SHARE) while it adds work for its profiles, and switches it.
CREATE POLICY worker ON bank FOR UPDATE TO membank_worker USING (true) WITH CHECK (true);

---------------------------------------------------------------------------------------------------
-- Who asks: a document by its access list, and what was made of it by the document
---------------------------------------------------------------------------------------------------

CREATE POLICY reader ON document FOR SELECT TO membank_app
    USING (access && (SELECT current_readers()) AND bank_id = ANY ((SELECT current_banks())::bigint[]));
-- Looked up row by row: EXISTS is hashed wherever the planner takes a tenant's documents to be few,
-- and then all of them are gone through for a hundred chunks (6 ms for 12,500 documents). Chunks and
-- blobs are only ever read by their ids.
CREATE POLICY reader ON chunk FOR SELECT TO membank_app
    USING ((SELECT true FROM document d WHERE d.tenant_id = chunk.tenant_id
        AND d.bank_id = chunk.bank_id AND d.id = chunk.document_id));
CREATE POLICY reader ON memory_blob FOR SELECT TO membank_app
    USING ((SELECT true FROM memory_key k WHERE k.tenant_id = memory_blob.tenant_id
        AND k.chunk_id = memory_blob.chunk_id AND k.profile_id = memory_blob.profile_id));
-- As the search says that it goes through them: see each_alone().
CREATE POLICY reader ON memory_key FOR SELECT TO membank_app
    USING (CASE WHEN (SELECT each_alone())
        THEN (SELECT true FROM document d WHERE d.tenant_id = memory_key.tenant_id
            AND d.bank_id = memory_key.bank_id AND d.id = memory_key.document_id)
        ELSE EXISTS (SELECT FROM document d WHERE d.tenant_id = memory_key.tenant_id
            AND d.bank_id = memory_key.bank_id AND d.id = memory_key.document_id) END);
-- How far the work is on what one may read, so that the views tell readers of their documents.
CREATE POLICY reader ON outbox FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = outbox.tenant_id
        AND d.bank_id = outbox.bank_id AND d.id = outbox.document_id));
CREATE POLICY reader ON dead_letter FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = dead_letter.tenant_id
        AND d.bank_id = dead_letter.bank_id AND d.id = dead_letter.document_id));
CREATE POLICY reader ON file FOR SELECT TO membank_app
    USING (principal_id = (SELECT current_principal()));
-- Who put a file into a bank sees what became of it, and so does who may read any of what it gave.
CREATE POLICY reader ON bank_file FOR SELECT TO membank_app
    USING (bank_id = ANY ((SELECT current_banks())::bigint[])
        AND (principal_id = (SELECT current_principal())
            OR EXISTS (SELECT FROM document d WHERE d.tenant_id = bank_file.tenant_id
                AND d.bank_id = bank_file.bank_id AND d.file_id = bank_file.file_id)));

---------------------------------------------------------------------------------------------------
-- The audit log: all add to it
---------------------------------------------------------------------------------------------------

CREATE POLICY writer ON audit_event FOR INSERT
    TO membank_app, membank_worker, membank_admin WITH CHECK (true);
CREATE POLICY tenant_role ON audit_event FOR INSERT TO membank_tenant WITH CHECK (true);
-- Triggers run as the owner where a deletion cascades.
CREATE POLICY added ON audit_event FOR INSERT TO membank_owner WITH CHECK (true);
CREATE POLICY administrator ON audit_event FOR SELECT TO membank_admin USING (true);
-- audit_expire() and audit_erase() see the events of the tenant that they were called for.
CREATE POLICY cleared ON audit_event TO membank_owner
    USING (tenant_id::text = current_setting('membank.cleared_audit', true));

---------------------------------------------------------------------------------------------------
-- The owner, as whom functions and triggers run that are SECURITY DEFINER
---------------------------------------------------------------------------------------------------

CREATE POLICY of_the_owner ON context_key TO membank_owner USING (true) WITH CHECK (true);
-- What is asked before a tenant is known.
CREATE POLICY found_by_name ON tenant FOR SELECT TO membank_owner USING (true);
CREATE POLICY shown ON api_key TO membank_owner
    USING (tenant_id || '-' || id = current_setting('membank.shown_key', true));
CREATE POLICY looked_up ON tenant_role FOR SELECT TO membank_owner USING (role = session_user);
CREATE POLICY found_in_change ON bank FOR SELECT TO membank_owner
    USING (next_profile_id IS NOT NULL);
CREATE POLICY found_with_objects ON object_gone FOR SELECT TO membank_owner USING (true);
-- What belongs to the tenant that asks.
CREATE POLICY counter ON tenant_usage TO membank_owner
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY counter ON tenant_quota FOR SELECT TO membank_owner
    USING (tenant_id = (SELECT current_tenant()));
-- What a trigger needs, while one runs.
CREATE POLICY of_triggers ON document FOR SELECT TO membank_owner
    USING ((SELECT pg_trigger_depth()) > 0);
CREATE POLICY of_triggers ON bank FOR SELECT TO membank_owner
    USING ((SELECT pg_trigger_depth()) > 0);
-- They change no bank, but hold it, which is bound by the policies of an update too.
CREATE POLICY held_by_triggers ON bank FOR UPDATE TO membank_owner
    USING ((SELECT pg_trigger_depth()) > 0) WITH CHECK (false);
CREATE POLICY of_triggers ON outbox TO membank_owner
    USING ((SELECT pg_trigger_depth()) > 0) WITH CHECK ((SELECT pg_trigger_depth()) > 0);
CREATE POLICY of_triggers ON dead_letter TO membank_owner
    USING ((SELECT pg_trigger_depth()) > 0);
CREATE POLICY of_triggers ON memory_blob FOR SELECT TO membank_owner
    USING (location IS NOT NULL AND (SELECT pg_trigger_depth()) > 0);
CREATE POLICY of_triggers ON object_gone FOR INSERT TO membank_owner
    WITH CHECK ((SELECT pg_trigger_depth()) > 0);
