-- Who is asking is set per transaction (app/db/session.py). Unset or '' reads as NULL, and NULL
-- matches no row.
CREATE FUNCTION current_tenant() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT nullif(current_setting('membank.tenant_id', true), '')::bigint
$$;

CREATE FUNCTION current_principal() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT nullif(current_setting('membank.principal_id', true), '')::bigint
$$;

-- The names under which the asking principal may stand in a document's access list.
CREATE FUNCTION current_readers() RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public AS $$
    SELECT ARRAY['everyone', 'principal:' || p.name] || ARRAY(
        SELECT 'group:' || g.name
        FROM group_member m
        JOIN principal_group g ON g.tenant_id = m.tenant_id AND g.id = m.group_id
        WHERE m.tenant_id = p.tenant_id AND m.principal_id = p.id)
    FROM principal p
    WHERE p.tenant_id = (SELECT current_tenant()) AND p.id = (SELECT current_principal())
$$;

-- The one question that is asked before a tenant is known. It answers for one name at a time.
CREATE FUNCTION find_tenant(wanted text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public AS $$
    SELECT id FROM tenant WHERE name = wanted
$$;
REVOKE ALL ON FUNCTION find_tenant(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_tenant(text) TO membank_app, membank_worker, membank_admin;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['tenant', 'principal', 'principal_group', 'group_member',
        'encoder_profile', 'bank', 'document', 'chunk', 'memory_key', 'memory_blob', 'outbox',
        'dead_letter']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('CREATE POLICY administrator ON %I TO membank_admin'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO membank_admin', t);
    END LOOP;
    -- The floor: whatever else is allowed, only rows of the tenant that was set. The outbox has
    -- none for the worker, which takes work of all tenants in turn; it holds ids and no text.
    FOREACH t IN ARRAY ARRAY['principal', 'principal_group', 'group_member', 'encoder_profile',
        'bank', 'document', 'chunk', 'memory_key', 'memory_blob', 'dead_letter']
    LOOP
        EXECUTE format('CREATE POLICY tenant_floor ON %I AS RESTRICTIVE'
            ' TO membank_app, membank_worker'
            ' USING (tenant_id = (SELECT current_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT current_tenant()))', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['principal', 'principal_group', 'group_member', 'encoder_profile',
        'bank']
    LOOP
        EXECUTE format('CREATE POLICY of_the_tenant ON %I FOR SELECT'
            ' TO membank_app, membank_worker USING (true)', t);
        EXECUTE format('GRANT SELECT ON %I TO membank_app, membank_worker', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['document', 'chunk', 'memory_key', 'memory_blob', 'dead_letter',
        'outbox']
    LOOP
        EXECUTE format('CREATE POLICY worker ON %I TO membank_worker'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO membank_worker', t);
    END LOOP;
END $$;

CREATE POLICY tenant_floor ON tenant AS RESTRICTIVE TO membank_app, membank_worker
    USING (id = (SELECT current_tenant()));
CREATE POLICY of_the_tenant ON tenant FOR SELECT TO membank_app, membank_worker USING (true);
CREATE POLICY found_by_name ON tenant FOR SELECT TO membank_owner USING (true);
GRANT SELECT ON tenant TO membank_app, membank_worker;

-- The reading side: a document by its access list, and what was made of it by the document.
CREATE POLICY reader ON document FOR SELECT TO membank_app
    USING (access && (SELECT current_readers()));
CREATE POLICY reader ON chunk FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = chunk.tenant_id
        AND d.bank_id = chunk.bank_id AND d.id = chunk.document_id));
CREATE POLICY reader ON memory_key FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM document d WHERE d.tenant_id = memory_key.tenant_id
        AND d.bank_id = memory_key.bank_id AND d.id = memory_key.document_id));
CREATE POLICY reader ON memory_blob FOR SELECT TO membank_app
    USING (EXISTS (SELECT FROM memory_key k WHERE k.tenant_id = memory_blob.tenant_id
        AND k.chunk_id = memory_blob.chunk_id AND k.profile_id = memory_blob.profile_id));
GRANT SELECT ON document, chunk, memory_key, memory_blob TO membank_app;
GRANT SELECT ON alembic_version TO membank_app, membank_worker, membank_admin;
