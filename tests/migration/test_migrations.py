"""The way up, the way down, and two that go up at the same time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool

from app.db import schema
from app.db.addresses import database_url
from app.local.postgres import EmbeddedPostgres
from app.local.processes import wait_until

ROOT = Path(__file__).parents[2]
PROVISION = "from app.db.schema import provision; provision()"

# Every object of ours by kind, name and definition.
OBJECTS = """
WITH ours AS (
    SELECT c.* FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
        AND c.relname NOT IN ('alembic_version', 'alembic_version_pkc')
)
SELECT 'relation', relname::text, concat_ws(' ', relkind, relrowsecurity, relforcerowsecurity,
    (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) a), reloptions::text)
FROM ours
UNION ALL
SELECT 'column', attrelid::regclass || '.' || attname,
    concat_ws(' ', format_type(atttypid, atttypmod), attnotnull, attidentity, attstorage)
FROM pg_attribute JOIN ours o ON attrelid = o.oid WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN ours o ON o.oid = conrelid
UNION ALL
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
FROM pg_index JOIN ours o ON o.oid = indrelid
UNION ALL
SELECT 'view', relname::text, pg_get_viewdef(oid) FROM ours WHERE relkind = 'v'
UNION ALL
SELECT 'policy', tablename || '.' || policyname,
    concat_ws(' ', permissive, roles::text, cmd, qual, with_check)
FROM pg_policies WHERE schemaname = 'public'
UNION ALL
SELECT 'trigger', tgname::text, concat_ws(' ', pg_get_triggerdef(t.oid), tgenabled)
FROM pg_trigger t JOIN ours o ON o.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT 'function', p.oid::regprocedure::text,
    concat_ws(' ', pg_get_functiondef(p.oid), proacl::text)
FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
UNION ALL
SELECT 'type', typname::text, typtype::text FROM pg_type t
WHERE typnamespace = 'public'::regnamespace AND typname !~ 'alembic_version'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid IN (t.oid, t.typelem) AND d.deptype = 'e')
ORDER BY 1, 2, 3
"""


@pytest.fixture
def database(own_database: str) -> str:
    return own_database


def objects(url: str) -> list[tuple[str, str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(OBJECTS).fetchall()


def downgrade(revision: str) -> None:
    engine = create_engine(database_url("owner"), poolclass=pool.NullPool)
    with engine.connect() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


def start(url: str, *arguments: str) -> subprocess.Popen[str]:
    """Python in the repository's root, with the database in its environment."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MEMBANK_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> str:
    """What they wrote, once all have ended with 0."""
    output = "".join([process.communicate(timeout=60)[0] for process in processes])
    assert [process.returncode for process in processes] == [0] * len(processes), output
    return output


def test_there_is_one_head_and_one_base() -> None:
    script = ScriptDirectory.from_config(schema.alembic_config())
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_up_down_and_up_again_from_an_empty_database(empty_database: str) -> None:
    assert objects(empty_database) == []
    schema.provision()
    whole = objects(empty_database)
    assert {kind for kind, _, _ in whole} >= {"column", "function", "policy", "trigger", "view"}
    schema.require_safe()
    downgrade("base")
    assert objects(empty_database) == []
    schema.provision()
    assert objects(empty_database) == whole


def test_each_migration_undoes_itself(database: str) -> None:
    for _ in ScriptDirectory.from_config(schema.alembic_config()).walk_revisions():
        before = objects(database)
        downgrade("-1")
        assert objects(database) != before
        schema.upgrade(database_url("owner"), "+1")
        assert objects(database) == before
        downgrade("-1")


def test_up_at_head_changes_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO tenant (name) VALUES ('harbor')")
        before = objects(database)
        for _ in range(2):
            schema.provision()
        assert objects(database) == before
        assert connection.execute("SELECT name FROM tenant").fetchall() == [("harbor",)]


def test_the_queue_keeps_what_waits_and_what_failed_on_the_way_up_and_down(database: str) -> None:
    downgrade("0002")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenant (name) VALUES ('harbor');"
            "INSERT INTO encoder_profile (tenant_id, id, spec) SELECT id, 'p', '{}' FROM tenant;"
            "INSERT INTO bank (tenant_id, name, profile_id) SELECT id, 'b', 'p' FROM tenant;"
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text)"
            " SELECT tenant_id, id, unnest('{new,edited,failed}'::text[]), '', '', 'x' FROM bank;"
            "UPDATE document SET text = 'y' WHERE id = 'edited';"
            "DELETE FROM outbox WHERE document_id = 'failed';"
            "INSERT INTO dead_letter (tenant_id, bank_id, document_id, attempts, error)"
            " SELECT tenant_id, bank_id, id, 5, 'why' FROM document WHERE id = 'failed'"
        )
        rows = "SELECT document_id, revision, attempts FROM outbox ORDER BY 1"
        before = connection.execute(rows).fetchall()
        assert [row[0] for row in before] == ["edited", "new"]
        schema.upgrade(database_url("owner"))
        assert connection.execute(rows).fetchall() == before
        job = "SELECT document_id, state, last_error, priority FROM job ORDER BY 1"
        assert connection.execute(job).fetchall() == [
            ("edited", "pending", None, 0),
            ("failed", "failed", "why", None),
            ("new", "pending", None, 0),
        ]
        assert connection.execute("SELECT traceback FROM dead_letter").fetchall() == [("",)]
        assert connection.execute("SELECT paused FROM tenant").fetchall() == [(False,)]
        connection.execute("UPDATE document SET text = 'z' WHERE id = 'new'")
        assert connection.execute(job).fetchall()[-1] == ("new", "pending", None, 1)
        downgrade("0002")
        assert connection.execute("SELECT error FROM dead_letter").fetchall() == [("why",)]
        connection.execute("UPDATE document SET text = text || '.'")
        assert [row[:2] for row in connection.execute(rows)] == [
            ("edited", 3),
            ("failed", 2),
            ("new", 3),
        ]


def test_two_that_provision_one_database_at_the_same_time_both_succeed(
    template: str, empty_database: str
) -> None:
    finish(*[start(empty_database, "-c", PROVISION) for _ in range(2)])
    schema.require_safe()


def test_provisioning_gets_over_a_role_that_another_databases_provisioning_alters(
    postgres: EmbeddedPostgres, template: str, empty_database: str
) -> None:
    """Roles belong to the server, and Postgres lets only one of two alter a role at a time."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query LIKE 'ALTER ROLE%' AND wait_event_type = 'Lock'"
    )

    def waits() -> bool:
        with psycopg.connect(empty_database) as connection:
            return connection.execute(waiting).fetchone() == (1,)

    with psycopg.connect(postgres.url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("ALTER ROLE membank_worker NOSUPERUSER")
        provisioned = pool.submit(schema.provision)
        assert wait_until(waits, 60)
        other.commit()
        provisioned.result()
    schema.require_safe()


def test_alembic_upgrades_by_command_with_the_settings_of_the_environment(database: str) -> None:
    whole = objects(database)
    finish(start(database, "-m", "alembic", "downgrade", "base"))
    assert objects(database) == []
    finish(start(database, "-m", "alembic", "upgrade", "head"))
    assert objects(database) == whole
    assert "(head)" in finish(start(database, "-m", "alembic", "current"))


def test_a_change_of_profile_goes_down_to_the_profile_that_serves(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        downgrade("0004")
        connection.execute(
            "INSERT INTO tenant (name) VALUES ('harbor');"
            "INSERT INTO encoder_profile (tenant_id, id, spec)"
            " SELECT id, unnest('{p,next}'::text[]), '{}' FROM tenant;"
            "INSERT INTO bank (tenant_id, name, profile_id) SELECT id, 'b', 'p' FROM tenant;"
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, split_revision)"
            " SELECT tenant_id, id, 'd', '', '', 'x', 1 FROM bank;"
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text)"
            " SELECT tenant_id, id, 'split', '', '', 'x' FROM bank;"
            "INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at,"
            " end_at, hash) SELECT tenant_id, bank_id, id, n, 'x', '', 0, 1, n FROM document,"
            " generate_series(1, 2) n WHERE id = 'd';"
            "DELETE FROM outbox WHERE chunk_id = (SELECT max(id) FROM chunk);"
            "INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, attempts, error)"
            " SELECT tenant_id, bank_id, document_id, id, 5, 'why' FROM chunk ORDER BY id DESC"
            " LIMIT 1;"
            "INSERT INTO dead_letter (tenant_id, bank_id, document_id, attempts, error)"
            " SELECT tenant_id, id, 'split', 5, 'split' FROM bank"
        )
        work = "SELECT document_id, chunk_id IS NULL, profile_id FROM outbox ORDER BY 1, 2, 3"
        failures = "SELECT chunk_id IS NULL, error FROM dead_letter ORDER BY 2"
        before = connection.execute(work).fetchall(), connection.execute(failures).fetchall()
        assert before == (
            [("d", False, "p"), ("split", True, "p")],
            [(True, "split"), (False, "why")],
        )
        schema.upgrade(database_url("owner"))
        assert connection.execute(
            "SELECT profile_id FROM dead_letter ORDER BY error"
        ).fetchall() == [(None,), ("p",)]
        connection.execute("UPDATE bank SET next_profile_id = 'next'")
        connection.execute(
            "WITH taken AS (DELETE FROM outbox WHERE id = (SELECT max(id) FROM outbox"
            " WHERE profile_id = 'next') RETURNING *)"
            "INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, profile_id,"
            " attempts, error) SELECT tenant_id, bank_id, document_id, chunk_id, 'next', 5, 'next'"
            " FROM taken"
        )
        assert len(connection.execute(work).fetchall()) == 3
        downgrade("0004")
        assert (
            connection.execute(work).fetchall(),
            connection.execute(failures).fetchall(),
        ) == before
        connection.execute("UPDATE document SET text = 'y' WHERE id = 'd'")
        assert ("d", True, "p") in connection.execute(work).fetchall()
        schema.upgrade(database_url("owner"))
        assert connection.execute("SELECT next_profile_id FROM bank").fetchall() == [(None,)]


def test_alembic_check_finds_nothing_to_do_and_finds_what_was_changed_by_hand(
    database: str,
) -> None:
    assert "No new upgrade operations" in finish(start(database, "-m", "alembic", "check"))
    with psycopg.connect(database) as connection:
        connection.execute("DROP INDEX chunk_document")
        connection.execute("ALTER TABLE bank ADD COLUMN colour text")
    check = start(database, "-m", "alembic", "check")
    output, _ = check.communicate(timeout=60)
    assert check.returncode
    assert "chunk_document" in output
    assert "colour" in output


def test_banks_that_were_open_to_their_tenant_stay_so(database: str) -> None:
    downgrade("0004")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenant (name) VALUES ('harbor');"
            "INSERT INTO encoder_profile (tenant_id, id, spec) SELECT id, 'p', '{}' FROM tenant;"
            "INSERT INTO bank (tenant_id, name, profile_id) SELECT id, 'b', 'p' FROM tenant"
        )
        schema.upgrade(database_url("owner"))
        rows = connection.execute(
            "SELECT b.name, m.grantee, m.role FROM bank b JOIN bank_member m"
            " ON m.tenant_id = b.tenant_id AND m.bank_id = b.id"
        ).fetchall()
        assert rows == [("b", "everyone", "reader")]
