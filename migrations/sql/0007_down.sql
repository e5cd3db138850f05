-- The two functions as they were, rights included: dropped and made again, with their triggers.
DO $$
DECLARE
    f regprocedure;
    p record;
    definition text;
    triggers text[];
    t record;
BEGIN
    FOR p IN SELECT pg_proc.oid::regprocedure AS name,
            substr(s, length('search_path=') + 1) AS path
        FROM pg_proc, unnest(proconfig) s
        WHERE pronamespace = 'public'::regnamespace AND s LIKE 'search_path=%, pg_temp'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %s', p.name,
            left(p.path, -length(', pg_temp')));
    END LOOP;
    FOREACH f IN ARRAY ARRAY['document_queue()', 'chunk_queue()']::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY INVOKER', f);
        definition := pg_get_functiondef(f);
        triggers := ARRAY[]::text[];
        FOR t IN SELECT oid, tgname, tgrelid::regclass AS relation FROM pg_trigger
            WHERE tgfoid = f ORDER BY oid
        LOOP
            triggers := triggers || pg_get_triggerdef(t.oid) || format(
                'ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.relation, t.tgname);
            EXECUTE format('DROP TRIGGER %I ON %s', t.tgname, t.relation);
        END LOOP;
        EXECUTE format('DROP FUNCTION %s', f);
        EXECUTE definition;
        FOREACH definition IN ARRAY triggers LOOP
            EXECUTE definition;
        END LOOP;
    END LOOP;
    FOR t IN SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'public'
        AND policyname IN ('of_triggers', 'held_by_triggers', 'tenant_role', 'tenant_role_floor')
    LOOP
        EXECUTE format('DROP POLICY %I ON %I', t.policyname, t.tablename);
    END LOOP;
    FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p', 'v') AND relname <> 'alembic_version'
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM membank_tenant', t.relname);
    END LOOP;
END $$;

DROP FUNCTION role_tenant();
DROP TABLE tenant_role;

CREATE OR REPLACE FUNCTION current_tenant() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT nullif(current_setting('membank.tenant_id', true), '')::bigint
$$;
CREATE OR REPLACE FUNCTION current_principal() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT nullif(current_setting('membank.principal_id', true), '')::bigint
$$;
DROP FUNCTION signed_context();
DROP TABLE context_key;
