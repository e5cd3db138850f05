-- name: powers
-- The role itself and every role whose rights it has or may take.
WITH RECURSIVE held(oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = :name
    UNION SELECT m.roleid FROM pg_auth_members m JOIN held ON m.member = held.oid
)
SELECT r.rolname AS role, r.rolname = :name AS itself, array_remove(ARRAY[
    CASE WHEN rolsuper THEN 'is superuser' END,
    CASE WHEN rolbypassrls THEN 'bypasses RLS' END,
    CASE WHEN rolreplication THEN 'replicates' END,
    CASE WHEN rolcreaterole THEN 'makes roles' END,
    CASE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid
        AND c.relnamespace = 'public'::regnamespace) THEN 'owns tables' END,
    CASE WHEN EXISTS (SELECT FROM pg_proc p WHERE p.proowner = r.oid
        AND p.pronamespace = 'public'::regnamespace) THEN 'owns functions' END,
    CASE WHEN EXISTS (SELECT FROM pg_database d WHERE d.datdba = r.oid
        AND d.datname = current_database()) THEN 'owns the database' END,
    CASE WHEN r.rolname LIKE 'pg\_%' THEN 'sees more than rows' END,
    CASE WHEN r.rolname = :name AND NOT rolsuper
        AND has_database_privilege(r.oid, current_database(), 'TEMPORARY')
        THEN 'may make temporary tables (membank migrate forbids it)' END,
    CASE WHEN r.rolname = :name AND NOT rolsuper
        AND has_schema_privilege(r.oid, 'public', 'CREATE')
        THEN 'may create in the schema public' END
], NULL) AS powers
FROM held JOIN pg_roles r USING (oid) ORDER BY 2 DESC, 1

-- name: without_floor
-- Tables that show more than they may. Without a floor a table shows every row that a permissive
-- policy lets pass. The worker takes work of all tenants in turn, so for it the outbox has none.
SELECT relname, CASE
    WHEN NOT (relrowsecurity AND relforcerowsecurity) THEN 'off on '
    WHEN NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) THEN 'no policy on '
    ELSE 'no floor for a role on ' END AS fault
FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    AND relname <> 'alembic_version'
    AND (NOT (relrowsecurity AND relforcerowsecurity)
        OR NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
        OR EXISTS (
            SELECT FROM pg_roles r WHERE r.rolname = ANY(:roles)
            AND (c.relname, r.rolname) <> ('outbox', :worker)
            AND r.oid IN (
                SELECT grantee FROM aclexplode(c.relacl)
                UNION ALL SELECT a.grantee FROM pg_attribute t, aclexplode(t.attacl) a
                WHERE t.attrelid = c.oid)
            AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid
                AND NOT p.polpermissive AND p.polcmd = '*' AND r.oid = ANY(p.polroles))))
ORDER BY 1

-- name: loose
-- Views, functions and grants that go around the policies.
SELECT relname || ' is open to PUBLIC' FROM pg_class c
WHERE relnamespace = 'public'::regnamespace
    AND EXISTS (SELECT FROM aclexplode(c.relacl) WHERE grantee = 0)
UNION ALL
SELECT relname || ' is a view that reads with its owner''s rights' FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'
    AND NOT coalesce('security_invoker=true' = ANY(reloptions), false)
UNION ALL
SELECT relname || ' keeps rows that no policy guards' FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('m', 'f')
UNION ALL
SELECT proname || ' runs with its owner''s rights for everyone' FROM pg_proc p
WHERE pronamespace = 'public'::regnamespace AND prosecdef
    AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0))
UNION ALL
SELECT proname || ' looks names up where its caller says' FROM pg_proc p
WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM unnest(proconfig) s
        WHERE s LIKE 'search_path=pg_catalog%, pg_temp')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1
