"""A next version, whose revisions run before and after it is deployed."""

import re
from pathlib import Path

import psycopg
import pytest
from alembic import command
from typer.testing import CliRunner

from app.commands.stack import commands
from app.db import revisions, schema
from app.errors import MembankError
from app.search.search import search
from tests.conftest import NORTH, PROFILE, Company, work_off
from tests.migration.conftest import Migrations, alembic, move

ADD = "ALTER TABLE chunk ADD COLUMN colour text NOT NULL DEFAULT 'red'"
DROP_IT = "ALTER TABLE chunk DROP COLUMN colour"
TAKE_AWAY = "ALTER TABLE chunk DROP COLUMN heading"
GIVE_BACK = "ALTER TABLE chunk ADD COLUMN heading text NOT NULL DEFAULT ''"


@pytest.fixture
def database(own_database: str) -> str:
    return own_database


def now_at(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert row is not None
    return str(row[0])


def check() -> str:
    """What doctor says of the schema's revision."""
    (found,) = [check for check in schema.checks() if check.name == "migration"]
    assert found.good is revisions.fits(found.detail.partition(",")[0].partition(";")[0])
    return found.detail


def columns(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [column.name for column in connection.execute("TABLE chunk").description or ()]


class TestNumbers:
    def test_each_revision_says_by_its_number_when_it_runs(self) -> None:
        chain = revisions.known()
        assert chain[0] == "0001"
        for revision in chain:
            assert re.fullmatch(r"\d{4}(_[1-9]\d*)?", revision)
        parts = [tuple(int(part) for part in revision.split("_")) for revision in chain]
        assert parts == sorted(set(parts))

    @pytest.mark.parametrize(
        ("chain", "current", "fits", "missing", "before"),
        [
            (["0001"], "0001", True, 0, 0),
            (["0001"], None, False, 1, 1),
            (["0001"], "0001_1", True, 0, 0),
            (["0001"], "0002", False, 0, 0),
            (["0001"], "0002_1", False, 0, 0),
            (["0001"], "0000", False, 0, 0),
            (["0001", "0001_1", "0002"], None, False, 3, 3),
            (["0001", "0001_1", "0002"], "0001", False, 2, 1),
            (["0001", "0001_1", "0002"], "0001_1", True, 1, 0),
            (["0001", "0001_1", "0002"], "0002", True, 0, 0),
            (["0001", "0001_1", "0002"], "0002_1", True, 0, 0),
            (["0001", "0001_1", "0002"], "0003", False, 0, 0),
            (["0001", "0001_1", "0001_2"], "0001_1", False, 1, 1),
            (["0001", "0001_1", "0002", "0003"], "0001_1", True, 2, 0),
            (["0001", "0001_1", "0002", "0002_1", "0003"], "0001", False, 4, 1),
            (["0001", "0001_1", "0002", "0002_1", "0003"], "0001_1", False, 3, 0),
        ],
    )
    def test_what_fits_and_what_is_missing(
        self,
        chain: list[str],
        current: str | None,
        fits: bool,
        missing: int,
        before: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(revisions, "known", lambda: list(chain))
        assert revisions.fits(current) is fits
        assert len(revisions.missing(current)) == missing
        assert len(revisions.before_deployment(current)) == before


class TestHalves:
    @pytest.fixture
    def next_version(self, migrations: Migrations) -> Migrations:
        migrations.add("0001_1", ADD, DROP_IT)
        migrations.add("0002", TAKE_AWAY, GIVE_BACK)
        return migrations

    def test_the_version_that_serves_goes_on_between_them(
        self, database: str, company: Company, next_version: Migrations
    ) -> None:
        with pytest.raises(MembankError, match="migration: 0001, need 0002"):
            schema.require_safe()
        schema.provision(before_deployment=True)
        assert now_at(database) == "0001_1"
        schema.require_safe()
        assert check() == "0001_1; when no older version serves any more, 0002: membank migrate"
        with next_version.away():
            schema.require_safe()
            assert check() == "0001_1"
            schema.provision()
            company.store("handbook", "Hours are nine to five.")
            assert work_off() == 1
            (found,) = search(company.reader("alice"), company.bank.id, PROFILE, list(NORTH), 5)
            assert found.document_id == "handbook"
        assert now_at(database) == "0001_1"

    def test_the_version_before_serves_no_more_after_the_second(
        self, database: str, next_version: Migrations
    ) -> None:
        schema.provision()
        assert now_at(database) == check() == "0002"
        schema.require_safe()
        with next_version.away():
            with pytest.raises(MembankError, match="migration: 0002, need 0001"):
                schema.require_safe()
            with pytest.raises(MembankError, match=r"newer version \(0002\)"):
                schema.provision()
        assert now_at(database) == "0002"

    def test_the_second_comes_when_it_is_asked_for(
        self, database: str, next_version: Migrations
    ) -> None:
        for _ in range(2):
            schema.provision(before_deployment=True)
            assert now_at(database) == "0001_1"
        assert {"heading", "colour"} <= set(columns(database))
        schema.provision()
        assert now_at(database) == "0002"
        assert "heading" not in columns(database)

    def test_the_command_stops_between_them_when_it_is_told_to(
        self, database: str, next_version: Migrations
    ) -> None:
        told = CliRunner().invoke(commands, ["migrate", "--before"])
        assert (told.exit_code, now_at(database)) == (0, "0001_1")
        told = CliRunner().invoke(commands, ["migrate"])
        assert (told.exit_code, now_at(database)) == (0, "0002")

    def test_an_empty_database_gets_both(
        self, empty_database: str, next_version: Migrations
    ) -> None:
        schema.provision(before_deployment=True)
        assert now_at(empty_database) == "0002"
        schema.require_safe()

    def test_a_version_that_was_left_out_is_named(
        self, database: str, next_version: Migrations
    ) -> None:
        next_version.add("0002_1", "SELECT 1")
        schema.provision(before_deployment=True)
        with pytest.raises(MembankError, match="migration: 0001_1, need 0002_1"):
            schema.require_safe()


def test_rows_stay_on_the_way_up_and_down(
    database: str, company: Company, migrations: Migrations
) -> None:
    company.store("handbook", "Hours are nine to five.")
    assert work_off() == 1
    rows = "SELECT id, text, start_at, hash FROM chunk"
    with psycopg.connect(database, autocommit=True) as connection:
        before = connection.execute(rows).fetchall()
        # The owner is bound by policies: a revision that changes rows lifts that for itself.
        migrations.add(
            "0001_1",
            f"{ADD}; ALTER TABLE chunk NO FORCE ROW LEVEL SECURITY;"
            " UPDATE chunk SET colour = text; ALTER TABLE chunk FORCE ROW LEVEL SECURITY",
            DROP_IT,
        )
        schema.upgrade(schema.database_url("owner"))
        assert connection.execute(rows).fetchall() == before
        told = connection.execute("SELECT colour = text FROM chunk").fetchall()
        assert told == [(True,)]
        schema.require_safe()
        move("-1")
        assert connection.execute(rows).fetchall() == before
    assert "colour" not in columns(database)


class TestLimits:
    def test_a_revision_gives_up_on_a_table_that_others_hold(
        self, database: str, migrations: Migrations
    ) -> None:
        migrations.add("0001_1", ADD)
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE chunk IN ACCESS SHARE MODE")
            with pytest.raises(MembankError, match="waited 5 seconds"):
                schema.provision()
        assert now_at(database) == "0001"
        assert "colour" not in columns(database)
        schema.provision()
        schema.require_safe()

    def test_a_revision_that_works_too_long_is_rolled_back(
        self, database: str, migrations: Migrations
    ) -> None:
        migrations.add(
            "0001_1", f"{ADD}; SET LOCAL statement_timeout = '50ms'; SELECT pg_sleep(60)"
        )
        with pytest.raises(MembankError, match="for a minute, and gave up unchanged"):
            schema.provision()
        assert now_at(database) == "0001"
        assert "colour" not in columns(database)

    def test_a_file_from_the_template_works_and_lifts_the_limits_for_itself_alone(
        self, database: str, migrations: Migrations
    ) -> None:
        migrations.add("0001_1", "SELECT 1")
        with alembic() as config:
            made = command.revision(config, "Colours", rev_id="0001_2", head="0001_1")
        file = Path(made.path)  # type: ignore[union-attr]
        assert file.name == "0001_2_colours.py"
        source = file.read_text().replace("    # with", "    with")
        source = re.sub(r"^    #     op", "        op", source, flags=re.M)
        index = "CREATE INDEX CONCURRENTLY IF NOT EXISTS chunk_colour ON chunk (tenant_id, heading)"
        asked = (
            "DO 'BEGIN ASSERT current_setting(''statement_timeout'') = ''1min''"
            " AND current_setting(''lock_timeout'') = ''5s''; END'"
        )
        assert '"CREATE INDEX CONCURRENTLY IF NOT EXISTS ..."' in source
        file.write_text(source.replace("CREATE INDEX CONCURRENTLY IF NOT EXISTS ...", index))
        migrations.add("0001_3", asked)
        schema.provision()
        assert now_at(database) == "0001_3"
        with psycopg.connect(database) as connection:
            found = connection.execute("SELECT to_regclass('chunk_colour') IS NOT NULL")
            assert found.fetchone() == (True,)
