"""What whoever changes the schema must keep to, read from the live catalogue.

What keeps tenants apart is asked by app/db/isolation.py, of every database that is served from;
pgrls asks in its own words. Here is what only matters to the schema itself.
"""

import psycopg
import pytest

from app.db import schema

STORED = """
SELECT c.* FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
AND c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version'
"""
RULES = {
    # But for tables that are of no tenant.
    "a table without a tenant": """
        SELECT relname FROM stored WHERE relname NOT IN ('tenant', 'context_key')
        AND NOT EXISTS (SELECT FROM pg_attribute a
            WHERE a.attrelid = stored.oid AND a.attname = 'tenant_id' AND a.attnotnull)""",
    # But for tables that are of no tenant, and for a login, which belongs to one tenant only.
    "a key of a tenant's table that does not begin with the tenant": """
        SELECT relname || '.' || conname FROM pg_constraint k JOIN stored ON stored.oid = conrelid
        JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
        WHERE contype IN ('p', 'u', 'f') AND relname NOT IN ('tenant', 'context_key')
        AND attname <> 'tenant_id' AND conname <> 'tenant_role_role_key'""",
    # Granted or not: who grants something later need not think of it. But for the outbox, of which
    # the worker takes work of all tenants in turn.
    "a table without a floor for the services": """
        SELECT relname FROM stored WHERE relname <> 'outbox' AND NOT EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = stored.oid AND NOT p.polpermissive
            AND p.polcmd = '*'
            AND p.polroles @> ARRAY['membank_app'::regrole::oid, 'membank_worker'::regrole::oid])
        """,
    "a table without a floor for the psql roles of tenants": """
        SELECT relname FROM stored WHERE NOT EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = stored.oid AND NOT p.polpermissive
            AND p.polcmd = '*' AND p.polroles @> ARRAY['membank_tenant'::regrole::oid])""",
    "a right of the app to change anything": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p', 'v')
        AND (has_table_privilege('membank_app', oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')
            OR has_any_column_privilege('membank_app', oid, 'UPDATE, REFERENCES')
            OR (relname <> 'audit_event'
                AND has_any_column_privilege('membank_app', oid, 'INSERT')))""",
    "a right of a service to do more with the audit log than add to it": """
        SELECT name FROM (VALUES ('membank_app'), ('membank_worker')) service (name)
        WHERE has_table_privilege(name, 'audit_event', 'SELECT, UPDATE, DELETE, TRUNCATE')
            OR has_any_column_privilege(name, 'audit_event', 'SELECT, UPDATE')""",
    "a trigger that a replica or a restore would pass by": """
        SELECT relname || '.' || tgname FROM pg_trigger t JOIN stored ON stored.oid = tgrelid
        WHERE NOT tgisinternal AND tgenabled <> 'A'""",
    "something of ours that another than the owner owns": """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relowner <> 'membank_owner'::regrole""",
    "a table or view that nobody has explained": """
        SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p', 'v') AND relname <> 'alembic_version'
        AND obj_description(c.oid, 'pg_class') IS NULL""",
}
BREAKING = [
    ("a table without a tenant", "CREATE TABLE leak (tenant_id bigint)"),
    (
        "a key of a tenant's table that does not begin with the tenant",
        "ALTER TABLE chunk ADD UNIQUE (id)",
    ),
    ("a table without a floor for the services", "DROP POLICY tenant_floor ON document"),
    (
        "a table without a floor for the services",
        "ALTER POLICY tenant_floor ON document TO membank_app",
    ),
    (
        "a table without a floor for the services",
        "CREATE TABLE leak (tenant_id bigint NOT NULL);"
        "ALTER TABLE leak ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    ),
    (
        "a table without a floor for the psql roles of tenants",
        "DROP POLICY tenant_role_floor ON api_key",
    ),
    (
        "a right of the app to change anything",
        "GRANT UPDATE (text) ON document TO membank_app",
    ),
    ("a right of the app to change anything", "GRANT INSERT ON document_load TO membank_app"),
    ("a right of the app to change anything", "GRANT INSERT (tenant_id) ON file TO membank_app"),
    (
        "a right of a service to do more with the audit log than add to it",
        "GRANT SELECT (actor) ON audit_event TO membank_worker",
    ),
    (
        "a trigger that a replica or a restore would pass by",
        "ALTER TABLE document ENABLE TRIGGER document_revise",
    ),
    (
        "a trigger that a replica or a restore would pass by",
        "ALTER TABLE chunk DISABLE TRIGGER chunk_queue",
    ),
    (
        "something of ours that another than the owner owns",
        "ALTER TABLE object_gone OWNER TO postgres",
    ),
    ("a table or view that nobody has explained", "COMMENT ON VIEW job IS NULL"),
]


def found(connection: psycopg.Connection, rule: str) -> list[tuple[str]]:
    return connection.execute(f"WITH stored AS ({STORED}) {RULES[rule]}").fetchall()


@pytest.mark.parametrize("rule", RULES)
def test_there_is_no(rule: str, superuser: psycopg.Connection) -> None:
    assert found(superuser, rule) == []


@pytest.mark.parametrize(("rule", "statement"), BREAKING)
def test_what_breaks_a_rule_is_found(
    rule: str, statement: str, superuser: psycopg.Connection
) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute(statement)
        assert found(superuser, rule)


def test_each_rule_is_broken_once() -> None:
    assert {rule for rule, _ in BREAKING} == set(RULES)


def test_tenants_are_kept_apart(database: str) -> None:
    assert [check for check in schema.checks() if not check.good] == []
