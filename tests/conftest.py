"""A real Postgres for the tests, a migrated database without rows for each, and tenants to fill it.

`postgres` is the server, started once per process of a run. `database` gives a test a migrated
database without rows and points the program at it.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import text
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from app.access.quota import count_request
from app.bank import documents
from app.bank.documents import Draft, Piece, Stored
from app.bank.find import Bank
from app.db.session import Asker, transaction
from app.local.postgres import EmbeddedPostgres
from app.queue import outbox
from app.queue.encoding import Encoded, chunk_texts, finish_encoding
from app.queue.outbox import Work
from tests import edges
from tests.edges import add_bank, add_principal, add_tenant, find_principal
from tests.servers import TEMPLATE, copied, laid_out, lend, of_the_run, pointed_at, running
from workers.uploads import store

PROFILE = "profile-of-the-tests"
NORTH = (1.0, 0.0, 0.0)

# Read when torch is loaded, here and in every process that a test starts. Several threads gain
# nothing on tiny models, and where other processes compute too they mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test fails because the machine is slow.
hypothesis_settings.register_profile(
    "membank",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis_settings.load_profile("membank")


class _ByStack(LoadFileScheduling):
    """Keeps in one process the tests of a file, and those that share the session's stack.

    Another process has those that start a stack of their own: two at a time are what the memory of
    a small machine holds.
    """

    OWN = frozenset({"test_compose.py", "test_readme.py", "test_stack.py"})

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(super()._split_scope(nodeid))
        if file.parent.name != "e2e":
            return str(file)
        return "own stacks" if file.name in self.OWN else "stack"


# Not --dist loadgroup: pytest-xdist 3.8 tells groups by names of tests that pytest 9.2 ignores.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByStack:
    return _ByStack(config, log)


@pytest.fixture(scope="session")
def laid_out_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home to copy, see `servers.laid_out`."""
    return laid_out(of_the_run(tmp_path_factory))


@pytest.fixture(scope="session")
def postgres(
    laid_out_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    """A server with TEMPLATE in a home of its own. Roles belong to it, not to a database of it."""
    home = tmp_path_factory.mktemp("postgres")
    lend(laid_out_home, home)
    with running(home) as server:
        yield server
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database without rows, for `copied`. The server has its roles."""
    return TEMPLATE


@pytest.fixture(scope="session")
def shared_database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    with copied(postgres, template) as url:
        yield url


@pytest.fixture
def database(shared_database: str) -> Iterator[str]:
    """Administrator's URL of a migrated database without rows, that the program now uses.

    A test that changes more than rows overrides this by `own_database` or `empty_database`.
    """
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute("DELETE FROM tenant; DELETE FROM object_gone")
    with pointed_at(shared_database):
        yield shared_database


@pytest.fixture
def own_database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A migrated database for this test alone, whose schema it may break."""
    with copied(postgres, template) as url, pointed_at(url):
        yield url


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without anything, for this test alone."""
    with copied(postgres, "template1") as url, pointed_at(url):
        yield url


@pytest.fixture
def superuser(database: str) -> Iterator[psycopg.Connection]:
    """A connection that no policy binds, in autocommit."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@dataclass(frozen=True)
class Company:
    """A tenant with one bank, and short ways to fill it."""

    name: str
    bank: Bank

    @property
    def tenant(self) -> int:
        return self.bank.tenant

    def reader(self, name: str, *groups: str) -> Asker:
        """A principal, made if need be."""
        add_principal(self.name, name, groups)
        return find_principal(self.name, name)

    def store(
        self, document: str, body: str, access: Sequence[str] | None = None, title: str = "Title"
    ) -> Stored:
        """Store a document as ingest does; each paragraph of `body` is a chunk."""
        draft = Draft(document, f"{document}.md", title, body, access, {"of": self.name})
        return edges.store(self.tenant, self.bank.id, draft, pieces_of(body))


@pytest.fixture
def new_company(database: str) -> Callable[[str], Company]:
    """Makes a tenant with a bank under PROFILE."""

    def make(name: str) -> Company:
        add_tenant(name)
        return Company(name, add_bank(name, "handbook", PROFILE, "{}"))

    return make


@pytest.fixture
def company(new_company: Callable[[str], Company]) -> Company:
    return new_company("harbor")


def begin_request(asker: Asker) -> None:
    """Count one, in a transaction of its own."""
    with transaction(asker) as connection:
        count_request(connection, asker)


def pieces_of(body: str) -> list[Piece]:
    """One piece per paragraph."""
    pieces, start = [], 0
    for paragraph in body.split("\n\n"):
        digest = hashlib.sha256(paragraph.encode()).hexdigest()
        pieces.append(Piece(paragraph, "", start, start + len(paragraph), digest))
        start += len(paragraph) + 2
    return pieces


def encoded(work: Work, embedding: Sequence[float] = NORTH, payload: bytes = b"kv") -> Encoded:
    """An invented memory of a chunk."""
    return Encoded(work, embedding, payload)


def work_off(vectors: Mapping[str, Sequence[float]] | None = None, profile: str = PROFILE) -> int:
    """Do what is due as a worker does, with the embedding that `vectors` has for a chunk's text.

    A chunk's payload is "kv of " and its text. Returns how many memories were written.
    """
    written = 0
    while work := outbox.claim(profile, 1000, 60.0):
        for one in work:
            if one.file is not None:
                store([one])
            elif one.chunk is None:
                split(one)
        for tenant in sorted({one.tenant for one in work}):
            mine = [one for one in work if one.tenant == tenant and one.chunk is not None]
            written += _encoded_off(tenant, profile, mine, vectors or {})
    return written


def _encoded_off(
    tenant: int, profile: str, work: Sequence[Work], vectors: Mapping[str, Sequence[float]]
) -> int:
    """A tenant's chunks at once: two transactions for each would be most of a test's time."""
    texts = chunk_texts(tenant, work) if work else {}
    done = []
    for one in work:
        if one.chunk in texts:
            body = texts[one.chunk]
            done.append(encoded(one, vectors.get(body, NORTH), b"kv of " + body.encode()))
    return finish_encoding(tenant, profile, done) if done else 0


def split(work: Work) -> bool:
    """Give a document the chunks of its present text, as a worker does."""
    found = edges.read_text(work.tenant, work.bank, work.document)
    if found is None:
        return False
    _, body, revision = found
    with transaction(Asker("worker", work.tenant)) as connection:
        return outbox.take(connection, work) and documents.apply_split(
            connection, work.tenant, work.bank, work.document, revision, pieces_of(body)
        )


def ask(asker: Asker, statement: str, **values: object) -> list[tuple[Any, ...]]:
    """Rows of a statement in a transaction of `asker`."""
    with transaction(asker) as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def change(asker: Asker, statement: str, **values: object) -> int:
    """How many rows a statement touches in a transaction of `asker`."""
    with transaction(asker) as connection:
        return connection.execute(text(statement), values).rowcount


def administer(statement: str, **values: object) -> int:
    """Change rows as a person does who is logged in as membank_admin."""
    return change(Asker("admin"), statement, **values)
