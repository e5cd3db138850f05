"""No row, no count and no error text of another tenant, whoever asks and however."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text

from app.access.logins import drop_login
from app.db.session import Asker, transaction
from app.db.signing import context_key
from app.local.postgres import EmbeddedPostgres
from tests.adversary import (
    MARK,
    SHARED,
    Attacker,
    World,
    attackers,
    build,
    findings,
    url_of,
)
from tests.conftest import PROFILE, Company
from tests.edges import add_bank, add_tenant
from tests.servers import copied, pointed_at


@pytest.fixture(scope="module")
def world(postgres: EmbeddedPostgres, template: str) -> Iterator[World]:
    def new_company(name: str) -> Company:
        add_tenant(name)
        return Company(name, add_bank(name, f"{name}-handbook", PROFILE, "{}"))

    with (
        copied(postgres, template) as url,
        pointed_at(url),
        psycopg.connect(url, autocommit=True) as superuser,
    ):
        yield build(superuser, new_company)
        for company in ("harbor", MARK):
            drop_login(company)


@pytest.fixture(scope="module")
def everyone(world: World) -> Iterator[dict[str, Attacker]]:
    with (
        psycopg.connect(url_of("app"), autocommit=True) as app,
        psycopg.connect(url_of("worker"), autocommit=True) as worker,
        psycopg.connect(world.login, autocommit=True) as tenant,
    ):
        connections = {"app": app, "worker": worker, "tenant": tenant}
        yield {attacker.name: attacker for attacker in attackers(world, connections)}


def test_both_tenants_have_rows_in_every_table(world: World) -> None:
    for table in world.relations("rp"):
        if table.name in ("alembic_version", "context_key"):
            continue
        assert table.owner, f"{table.name} does not say whose its rows are"
        for company in (world.ours, world.theirs):
            assert world.rows(table, company.tenant), f"teach tests/adversary.py {table.name}"


@pytest.mark.parametrize("role", ["app", "worker", "tenant"])
def test_who_says_the_truth_sees_their_own(everyone: dict[str, Attacker], role: str) -> None:
    seen = everyone[f"{role}, own"].try_("SELECT id FROM document ORDER BY 1").said
    assert "plain-handbook" in seen
    assert "plain-late" in seen


@pytest.mark.parametrize("role", ["app", "worker", "tenant"])
def test_nobody_learns_of_another_tenant_nor_changes_it(
    world: World, everyone: dict[str, Attacker], role: str
) -> None:
    before = world.theirs_now()
    found = [
        finding
        for name, attacker in everyone.items()
        if name.startswith(f"{role},")
        for finding in findings(world, attacker)
    ]
    assert found == []
    assert world.theirs_now() == before


@pytest.mark.parametrize("role", ["app", "worker"])
def test_who_says_nothing_or_a_lie_sees_no_row_at_all(
    world: World, everyone: dict[str, Attacker], role: str
) -> None:
    for name, attacker in everyone.items():
        if not name.startswith(f"{role},") or name.endswith(", own"):
            continue
        for table in world.tables():
            if (attacker.role, table.name) in SHARED:
                continue
            outcome = attacker.try_(f"SELECT count(*) FROM {table.name}")
            assert outcome.code == "42501" or outcome.said == "(0,)", (name, table.name)


@pytest.mark.parametrize(
    "context",
    [
        "garbage",
        "garbage that looks right",
        "another tenant's number",
        "another process's context",
        "an unknown key",
        "a known key's name",
    ],
)
def test_a_lie_is_an_error_that_says_nothing_but_that(
    everyone: dict[str, Attacker], context: str
) -> None:
    outcome = everyone[f"app, {context}"].try_("SELECT current_tenant()")
    assert outcome.code == "42501"
    assert outcome.said.splitlines()[0] == "who is asking is not signed with a key of this database"


def test_settings_change_nothing_for_a_tenants_own_login(
    world: World, everyone: dict[str, Attacker]
) -> None:
    seen = {
        attacker.try_("SELECT tenant_id, count(*) FROM document GROUP BY 1").said
        for name, attacker in everyone.items()
        if name.startswith("tenant,")
    }
    assert len(seen) == 1
    assert seen.pop().startswith(f"({world.ours.tenant},")


def test_the_catalogue_tells_no_name_and_no_text(
    world: World, everyone: dict[str, Attacker]
) -> None:
    world.superuser.execute("ANALYZE")
    names = [
        row[0]
        for row in world.superuser.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'v') AND relnamespace"
            " IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
        )
    ]
    for role in ("app", "worker", "tenant"):
        attacker = everyone[f"{role}, own"]
        for name in names:
            where = f"WHERE t::text LIKE '%' || '{MARK[:4]}' || '{MARK[4:]}' || '%'"
            outcome = attacker.try_(f"SELECT t::text FROM {name} t {where}")
            assert MARK not in outcome.said, (role, name)


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan", "auto"])
def test_a_prepared_statement_answers_each_tenant_with_its_own(world: World, mode: str) -> None:
    key = context_key()
    with psycopg.connect(url_of("app"), autocommit=True) as connection:
        connection.execute("SELECT set_config('plan_cache_mode', %s, false)", [mode])
        connection.execute("PREPARE all_texts AS SELECT tenant_id, text FROM chunk")
        for turn in range(12):
            asker = (world.reader, world.their_reader, Asker("app"))[turn % 3]
            with connection.transaction():
                if asker.tenant:
                    signed = key.sign(asker.tenant, asker.principal, connection.info.backend_pid)
                    connection.execute("SELECT set_config('membank.context', %s, true)", [signed])
                rows = connection.execute("EXECUTE all_texts").fetchall()
            assert {row[0] for row in rows} == ({asker.tenant} if asker.tenant else set())
            assert bool(rows) == bool(asker.tenant)
            assert any(MARK in row[1] for row in rows) == (asker is world.their_reader)


def test_a_statement_of_the_program_with_a_forgotten_where_stays_at_home(world: World) -> None:
    with transaction(world.reader) as connection:
        rows = connection.execute(text("SELECT * FROM chunk JOIN document USING (tenant_id)")).all()
        counts = connection.execute(
            text("SELECT tenant_id, count(*) FROM memory_key GROUP BY ROLLUP (tenant_id)")
        ).all()
    assert rows
    assert MARK not in str(rows)
    assert {row[0] for row in counts} == {world.ours.tenant, None}
    assert len({row[1] for row in counts}) == 1


def test_an_injection_that_ends_the_transaction_ends_the_context_too(world: World) -> None:
    with psycopg.connect(url_of("app"), autocommit=True) as connection:
        signed = context_key().sign(
            world.ours.tenant, world.reader.principal, connection.info.backend_pid
        )
        connection.execute("BEGIN")
        connection.execute("SELECT set_config('membank.context', %s, true)", [signed])
        rows = connection.execute(
            f"SELECT 1; COMMIT; BEGIN; SET LOCAL membank.tenant_id = {world.theirs.tenant};"
            " SELECT count(*) FROM document"
        )
        while rows.nextset():
            pass
        assert rows.fetchone() == (0,)
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("weakness", "undo"),
    [
        (
            "CREATE TABLE leak AS SELECT tenant_id, text FROM chunk;"
            "GRANT SELECT ON leak TO membank_app",
            "DROP TABLE leak",
        ),
        (
            "CREATE VIEW leak AS SELECT * FROM document; GRANT SELECT ON leak TO membank_tenant",
            "DROP VIEW leak",
        ),
        (
            "CREATE MATERIALIZED VIEW leak AS SELECT count(*) FROM document;"
            "GRANT SELECT ON leak TO membank_app; CREATE VIEW leak2 AS SELECT text FROM chunk;"
            "GRANT SELECT ON leak2 TO PUBLIC",
            "DROP MATERIALIZED VIEW leak; DROP VIEW leak2",
        ),
        (
            "CREATE FUNCTION leak(bigint) RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS"
            " 'SELECT text FROM document WHERE tenant_id = $1'",
            "DROP FUNCTION leak(bigint)",
        ),
        (
            "GRANT SELECT ON SEQUENCE chunk_id_seq TO membank_worker",
            "REVOKE SELECT ON SEQUENCE chunk_id_seq FROM membank_worker",
        ),
        (
            "ALTER POLICY tenant_role_floor ON document USING (true)",
            "ALTER POLICY tenant_role_floor ON document USING (tenant_id = (SELECT role_tenant()))",
        ),
        (
            "ALTER TABLE principal ADD CONSTRAINT leak UNIQUE (name)",
            "ALTER TABLE principal DROP CONSTRAINT leak",
        ),
        (
            "ALTER TABLE group_member DROP CONSTRAINT group_member_tenant_id_group_id_fkey;"
            "CREATE UNIQUE INDEX leak ON principal_group (id);"
            "ALTER TABLE group_member ADD CONSTRAINT leak FOREIGN KEY (group_id)"
            " REFERENCES principal_group (id)",
            "ALTER TABLE group_member DROP CONSTRAINT leak; DROP INDEX leak;"
            "ALTER TABLE group_member ADD FOREIGN KEY (tenant_id, group_id)"
            " REFERENCES principal_group (tenant_id, id) ON DELETE CASCADE",
        ),
        (
            "GRANT TRUNCATE ON chunk, memory_key, memory_blob, outbox, dead_letter"
            " TO membank_worker",
            "REVOKE TRUNCATE ON chunk, memory_key, memory_blob, outbox, dead_letter"
            " FROM membank_worker",
        ),
        (
            "GRANT membank_admin TO membank_app",
            "REVOKE membank_admin FROM membank_app",
        ),
    ],
)
def test_the_suite_finds_what_is_weak(
    world: World, everyone: dict[str, Attacker], weakness: str, undo: str
) -> None:
    world.superuser.execute(weakness)
    try:
        found = next(
            (
                finding
                for role in ("app", "worker", "tenant")
                for finding in findings(world, everyone[f"{role}, own"])
            ),
            None,
        )
    finally:
        world.superuser.execute(undo)
    assert found
