"""What must be true of every table, trigger, function and view, read from the live catalogue."""

import psycopg
import pytest

RULES = {
    "a table without forced row-level security": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
        AND NOT (relrowsecurity AND relforcerowsecurity)""",
    "a table without a policy": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
        AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)""",
    "a table that the app or the worker reads without a restrictive floor": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND relname NOT IN ('alembic_version', 'outbox')
        AND (has_table_privilege('membank_app', c.oid, 'SELECT')
            OR has_table_privilege('membank_worker', c.oid, 'SELECT'))
        AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND NOT polpermissive)""",
    # But for tables that are of no tenant, and for a login, which belongs to one tenant only.
    "a key of a tenant's table that does not begin with the tenant": """
        SELECT conrelid::regclass || '.' || conname FROM pg_constraint k
        JOIN pg_class c ON c.oid = conrelid AND c.relnamespace = 'public'::regnamespace
        JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
        WHERE contype IN ('p', 'u', 'f')
        AND relname NOT IN ('alembic_version', 'tenant', 'context_key')
        AND attname <> 'tenant_id' AND conname <> 'tenant_role_role_key'""",
    "a trigger that a replica or a restore would pass by": """
        SELECT tgrelid::regclass || '.' || tgname FROM pg_trigger t
        JOIN pg_class c ON c.oid = tgrelid AND c.relnamespace = 'public'::regnamespace
        WHERE NOT tgisinternal AND tgenabled <> 'A' AND relkind <> 'v'""",
    "a function whose search_path is the caller's": """
        SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE pronamespace = 'public'::regnamespace AND NOT EXISTS
            (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        AND NOT coalesce(proconfig::text LIKE '%search_path=%', false)""",
    "a function with the owner's rights that everyone may call": """
        SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE pronamespace = 'public'::regnamespace AND prosecdef
        AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
            WHERE grantee = 0)""",
    "a view with its owner's rights": """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind = 'v'
        AND NOT coalesce(reloptions::text LIKE '%security_invoker=true%', false)""",
    "a copy of rows that no policy guards": """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('m', 'f')""",
    "a grant to everyone": """
        SELECT relname FROM pg_class c, aclexplode(relacl) a
        WHERE relnamespace = 'public'::regnamespace AND a.grantee = 0""",
    "something of ours that another than the owner owns": """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relowner <> 'membank_owner'::regrole""",
    "a right of the app to change anything but what it must": """
        SELECT relname || ' ' || privilege FROM pg_class c,
            unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) privilege
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
        AND has_table_privilege('membank_app', c.oid, privilege)""",
    "a table or view that nobody has explained": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p', 'v') AND relname <> 'alembic_version'
        AND obj_description(c.oid, 'pg_class') IS NULL""",
}


@pytest.mark.parametrize("rule", RULES)
def test_there_is_no(rule: str, superuser: psycopg.Connection) -> None:
    assert superuser.execute(RULES[rule]).fetchall() == []
