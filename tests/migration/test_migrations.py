"""The way up, the way down, and two that go up at the same time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.exc import InternalError

from app.db import revisions, schema
from app.local.postgres import EmbeddedPostgres
from app.local.processes import wait_until
from tests.catalogue import catalogue, names
from tests.conftest import Company
from tests.migration.conftest import move

ROOT = Path(__file__).parents[2]
PROVISION = "from app.db.schema import provision; provision()"


@pytest.fixture
def database(own_database: str) -> str:
    return own_database


def objects(url: str) -> list[str]:
    """The catalogue without Alembic's own table, which stays when all else goes."""
    with psycopg.connect(url) as connection:
        return [line for line in catalogue(connection) if "alembic_version" not in line]


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
    script = ScriptDirectory.from_config(revisions.alembic_config())
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_up_down_and_up_again_from_an_empty_database(empty_database: str) -> None:
    schema.prepare()
    nothing = objects(empty_database)
    assert {name.partition(" ")[0] for name in names(nothing)} == {"schema", "extension"}
    schema.provision()
    whole = objects(empty_database)
    schema.require_safe()
    move("base")
    assert objects(empty_database) == nothing
    schema.provision()
    assert objects(empty_database) == whole


def test_each_revision_undoes_itself(database: str) -> None:
    for revision in revisions.known()[::-1]:
        before = objects(database)
        move("-1")
        assert objects(database) != before
        move(revision)
        assert objects(database) == before
        move("-1")


def test_the_first_revision_undone_takes_rows_along_but_nothing_that_another_uses(
    company: Company, database: str
) -> None:
    company.store("handbook", "Welcome.")
    before = objects(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE VIEW theirs AS SELECT title FROM document")
        with pytest.raises(InternalError, match="view theirs depends on table document"):
            move("base")
        connection.execute("DROP VIEW theirs")
    assert objects(database) == before
    move("base")
    assert not any(line.startswith("relation") for line in objects(database))


def test_up_at_head_changes_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO tenant (name) VALUES ('harbor')")
        before = objects(database)
        for _ in range(2):
            schema.provision()
        assert objects(database) == before
        assert connection.execute("SELECT name FROM tenant").fetchall() == [("harbor",)]


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
    assert not any(line.startswith("relation") for line in objects(database))
    finish(start(database, "-m", "alembic", "upgrade", "head"))
    assert objects(database) == whole
    assert "(head)" in finish(start(database, "-m", "alembic", "current"))
