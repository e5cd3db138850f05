-- Who is asking stands in one setting, set per transaction by app/db/session.py:
-- KEY TENANT PRINCIPAL SIGNATURE. Whoever can run SQL can set it, but not sign it.
CREATE TABLE context_key (
    id          text PRIMARY KEY,
    inner_pad   bytea NOT NULL,
    outer_pad   bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz NOT NULL DEFAULT 'infinity'
);
COMMENT ON TABLE context_key IS
    'Keys that say who is asking, each as the two blocks that HMAC-SHA256 begins with. Secret.';
COMMENT ON COLUMN context_key.valid_until IS 'Signatures of a key that was replaced count until then.';
ALTER TABLE context_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE context_key FORCE ROW LEVEL SECURITY;
REVOKE ALL ON context_key FROM PUBLIC;
CREATE POLICY of_the_owner ON context_key TO membank_owner USING (true) WITH CHECK (true);
CREATE POLICY tenant_floor ON context_key AS RESTRICTIVE
    TO membank_app, membank_worker, membank_tenant USING (false);

-- {tenant, principal} of a signed context, null without one. Signed for this server process, so
-- that what was seen elsewhere is of no use here. An error when it is not signed by a valid key.
CREATE FUNCTION signed_context() RETURNS bigint[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
-- The session forces custom plans: planned anew, a check takes 30 microseconds instead of 7.
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    said text := nullif(current_setting('membank.context', true), '');
BEGIN
    IF said IS NULL THEN
        RETURN NULL;
    END IF;
    -- Hashes are compared, so that the time it takes tells nothing of the right signature.
    IF EXISTS (
        SELECT FROM context_key WHERE id = left(said, 16) AND valid_until > now()
            AND sha256(convert_to(right(said, 64), 'UTF8')) = sha256(convert_to(encode(sha256(
                outer_pad || sha256(inner_pad || convert_to(
                    left(said, -64) || pg_backend_pid(), 'UTF8'))), 'hex'), 'UTF8')))
    THEN
        RETURN ARRAY[split_part(said, ' ', 2)::bigint, nullif(split_part(said, ' ', 3)::bigint, 0)];
    END IF;
    RAISE EXCEPTION 'who is asking is not signed with a key of this database'
        USING ERRCODE = 'insufficient_privilege';
END $$;
REVOKE ALL ON FUNCTION signed_context() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION signed_context() TO membank_app, membank_worker, membank_admin;

CREATE OR REPLACE FUNCTION current_tenant() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RETURN (signed_context())[1];
END $$;

CREATE OR REPLACE FUNCTION current_principal() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RETURN (signed_context())[2];
END $$;

-- A person of a tenant logs in under a role of their own, a member of membank_tenant. The tenant
-- follows from who logged in, and from no setting.
CREATE TABLE tenant_role (
    tenant_id  bigint NOT NULL PRIMARY KEY REFERENCES tenant ON DELETE CASCADE,
    role       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tenant_role IS 'Which login role belongs to which tenant: membank tenant role.';
ALTER TABLE tenant_role ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_role FORCE ROW LEVEL SECURITY;
REVOKE ALL ON tenant_role FROM PUBLIC;
CREATE POLICY administrator ON tenant_role TO membank_admin USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_role TO membank_admin;
CREATE POLICY looked_up ON tenant_role FOR SELECT TO membank_owner USING (role = session_user);

CREATE FUNCTION role_tenant() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT tenant_id FROM tenant_role WHERE role = session_user
$$;
REVOKE ALL ON FUNCTION role_tenant() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION role_tenant() TO membank_tenant;

DO $$
DECLARE
    t text;
    own text;
BEGIN
    -- The floor, on every table there is, also where nothing is granted above it.
    FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND relname NOT IN ('alembic_version', 'context_key')
    LOOP
        own := CASE t WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END;
        EXECUTE format('CREATE POLICY tenant_role_floor ON %I AS RESTRICTIVE TO membank_tenant'
            ' USING (%I = (SELECT role_tenant())) WITH CHECK (%I = (SELECT role_tenant()))',
            t, own, own);
    END LOOP;
    CREATE POLICY tenant_floor ON tenant_role AS RESTRICTIVE TO membank_app, membank_worker
        USING (tenant_id = (SELECT current_tenant()))
        WITH CHECK (tenant_id = (SELECT current_tenant()));
    FOREACH t IN ARRAY ARRAY['tenant', 'encoder_profile', 'bank', 'chunk', 'memory_key', 'outbox',
        'dead_letter']
    LOOP
        EXECUTE format('CREATE POLICY tenant_role ON %I FOR SELECT TO membank_tenant'
            ' USING (true)', t);
        EXECUTE format('GRANT SELECT ON %I TO membank_tenant', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['document', 'principal', 'principal_group', 'group_member', 'bank_member']
    LOOP
        EXECUTE format('CREATE POLICY tenant_role ON %I TO membank_tenant'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, DELETE ON %I TO membank_tenant', t);
    END LOOP;
END $$;
-- Not the columns by which workers and triggers count: a wrong number there stops the work of all.
GRANT INSERT (tenant_id, bank_id, id, source, title, text, access, metadata),
    UPDATE (id, source, title, text, access, metadata) ON document TO membank_tenant;
GRANT INSERT (tenant_id, name), UPDATE (name) ON principal, principal_group TO membank_tenant;
GRANT INSERT (tenant_id, group_id, principal_id) ON group_member TO membank_tenant;
GRANT INSERT (tenant_id, bank_id, grantee, role), UPDATE (grantee, role) ON bank_member
    TO membank_tenant;
GRANT SELECT ON document_status, bank_status, job TO membank_tenant;
GRANT INSERT ON document_load TO membank_tenant;

-- Whoever may edit a document need not be able to write the queue: its triggers do that, and for
-- nothing but the rows that the statement changed. Nobody may put them on a table of their own.
ALTER FUNCTION document_queue() SECURITY DEFINER;
ALTER FUNCTION chunk_queue() SECURITY DEFINER;
REVOKE ALL ON FUNCTION document_queue(), chunk_queue() FROM PUBLIC;
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

-- Temporary tables are looked up first unless they are named last: one called context_key or
-- group_member must not stand in for the real one.
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS name, substr(s, length('search_path=') + 1) AS path
        FROM pg_proc p, unnest(proconfig) s
        WHERE pronamespace = 'public'::regnamespace AND s LIKE 'search_path=%'
            AND s NOT LIKE '%pg_temp'
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %s, pg_temp', f.name, f.path);
    END LOOP;
END $$;
