"""The chaos run's verdict sees what it is there to see."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from app.local.processes import Processes
from app.local.valkey import EmbeddedValkey
from tests.conftest import Company, work_off
from tests.long.chaos.verdict import _left_over, _traces


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    processes = Processes(tmp_path_factory.mktemp("valkey"))
    server = EmbeddedValkey(processes.home, processes)
    server.start()
    yield server
    server.stop()
    processes.end_strays()


@pytest.fixture
def whole(company: Company) -> Company:
    company.store("a", "The badge is orange.\n\nThe door is blue.")
    work_off()
    return company


def test_a_whole_bank_has_no_fault(
    whole: Company, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    assert list(_left_over(superuser)) == []
    assert list(_traces(superuser, ["orange"], tmp_path)) == []


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        ("DELETE FROM memory_blob", "2 chunks without exactly one blob"),
        ("DELETE FROM memory_key", "2 chunks without exactly one key"),
        ("DELETE FROM document", "2 chunks without document"),
        ("DELETE FROM chunk", "2 keys without chunk"),
        ("UPDATE document SET text = 'other'", "1 documents whose hash is not that of their text"),
        ("UPDATE document SET revision = 7", "1 documents whose chunks are of another revision"),
    ],
)
def test_what_is_amiss_is_named(
    whole: Company, superuser: psycopg.Connection, sabotage: str, says: str
) -> None:
    with superuser.transaction(force_rollback=True):
        # Without triggers, foreign keys among them.
        superuser.execute("SET LOCAL session_replication_role = replica")
        for table in ("document", "chunk", "memory_key", "memory_blob"):
            superuser.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        superuser.execute(sabotage)
        assert says in list(_left_over(superuser))


def test_a_trace_of_deleted_text_is_found_in_a_table_and_in_a_file(
    whole: Company, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    superuser.execute(
        "INSERT INTO dead_letter (tenant_id, bank_id, document_id, attempts, error)"
        " VALUES (%s, %s, 'a', 1, 'of the violet door')",
        (whole.tenant, whole.bank.id),
    )
    (tmp_path / "worker.log").write_text("the indigo door")
    told = list(_traces(superuser, ["orange", "violet", "indigo"], tmp_path))
    assert told == [
        "table dead_letter holds violet, which was deleted",
        "file worker.log holds indigo, which was deleted",
    ]


@pytest.mark.parametrize(
    "keep",
    [
        lambda v: v.set("violet", "1"),
        lambda v: v.rpush("queue", "a", "the violet door"),
        lambda v: v.hset("cache", "a", "the violet door"),
        lambda v: v.sadd("set", "the violet door"),
        lambda v: v.zadd("sorted", {"the violet door": 1}),
        lambda v: v.xadd("stream", {"a": "the violet door"}),
    ],
)
def test_traces_in_valkey_are_found(
    whole: Company,
    superuser: psycopg.Connection,
    tmp_path: Path,
    valkey: EmbeddedValkey,
    keep: Callable[[redis.Redis], object],
) -> None:
    with redis.Redis.from_url(valkey.url) as server:
        server.flushall()
        assert list(_traces(superuser, ["violet"], tmp_path, valkey.url)) == []
        keep(server)
    [told] = _traces(superuser, ["violet"], tmp_path, valkey.url)
    assert told.endswith("holds violet, which was deleted")
