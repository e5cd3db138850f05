"""A real Postgres for tests: laid out and migrated once a run, and copied for whoever needs one."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from filelock import FileLock
from sqlalchemy import make_url

from app.db.addresses import ROLES
from app.db.endpoint import Endpoint
from app.db.schema import provision
from app.db.session import dispose
from app.local.postgres import EmbeddedPostgres
from app.local.processes import Processes
from app.settings import settings

CONTEXT_KEY = "context key of the tests, of no worth"
TEMPLATE = "migrated"
"""A migrated database without rows, on every server that `server` gives."""

# A machine that fails takes the tests with it, so nothing need wait for the disk. A large pool of
# pages only costs: each dropped table and database is looked for in all of it.
_SETTINGS = (
    *("fsync=off", "full_page_writes=off", "synchronous_commit=off"),
    *("shared_buffers=128MB", "min_wal_size=32MB"),
)


class PostgresOfTests(EmbeddedPostgres):
    """The embedded server, without what protects data from a failure of the machine."""

    def _command(self, endpoint: Endpoint) -> list[str]:
        return [*super()._command(endpoint), *(f"--{setting}" for setting in _SETTINGS)]


def of_the_run(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of pytest share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def laid_out(folder: Path) -> Path:
    """A home in `folder` whose Postgres has TEMPLATE and a database `membank` without anything.

    It is made by whoever comes first, and never started there: `lend` copies it.
    """
    home = folder / "laid-out"
    with FileLock(f"{home}.lock"):
        if not home.exists():
            draft = folder / "laid-out.draft"
            _lay_out(draft)
            draft.rename(home)
    return home


def lend(from_home: Path, home: Path) -> None:
    """Give a home that has no Postgres yet the data and the password of another one."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(from_home / "postgres", home / "postgres")
    shutil.copy2(from_home / "postgres.json", home)


@contextlib.contextmanager
def running(home: Path) -> Iterator[PostgresOfTests]:
    """The server of a home while the block runs."""
    processes = Processes(home)
    server = PostgresOfTests(home, processes)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        processes.end_strays()


@contextlib.contextmanager
def copied(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A copy of a database while the block runs: its administrator's URL."""
    name = f"test_{uuid.uuid4().hex}"
    here = make_url(server.url)
    maintenance = here.set(database="postgres").render_as_string(False)
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        # Rights on a database are not copied with it.
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
        try:
            yield here.set(database=name).render_as_string(False)
        finally:
            dispose()
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def pointed_at(url: str) -> Iterator[None]:
    """Let the program use the database at `url`, with a cache of its own.

    Its connections stay open, for the next test of the same database.
    """
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as cache:
        patch.setenv("MEMBANK_CACHE_FOLDER", cache)
        for role in ROLES:
            patch.delenv(f"MEMBANK_{role.upper()}_DATABASE_URL", raising=False)
        patch.setenv("MEMBANK_DATABASE_URL", url)
        patch.setenv("MEMBANK_CONTEXT_KEY", CONTEXT_KEY)
        settings.cache_clear()
        yield
    settings.cache_clear()


def _lay_out(home: Path) -> None:
    with running(home) as server:
        here = make_url(server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        with pointed_at(here.set(database=TEMPLATE).render_as_string(False)):
            provision()
            dispose()
    state = home / "postgres.json"
    endpoint = Endpoint.load(state)
    assert endpoint is not None
    # Each copy takes a port of its own.
    Endpoint(0, endpoint.password).save(state)
