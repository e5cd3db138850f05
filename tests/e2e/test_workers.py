"""Real workers that die of a text, and two that share a queue."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from app.db.addresses import database_url
from app.db.session import Asker, transaction
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from tests import edges
from tests.e2e.conftest import make_tenant
from tests.e2e.poisoned import KILLS, RAISES


def write(file: Path, texts: dict[str, str]) -> Path:
    rows = ({"id": name, "title": name, "text": body} for name, body in texts.items())
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settled() -> bool:
    now = edges.queue()  # once: a lease that ends between two looks is seen in neither
    return not (now["pending"] or now["encoding"])


def rows(statement: str, **values: object) -> list[tuple[object, ...]]:
    with transaction(Asker("admin")) as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


@pytest.mark.timeout(300)
def test_what_makes_the_encoder_raise_and_what_kills_the_worker_are_buried_and_the_rest_is_done(
    stack: Stack, tmp_path: Path
) -> None:
    make_tenant("poison", ("alice", []))
    stack.processes.stop("worker")
    texts = {f"plain-{i}": f"Rule {i}: door {i} is locked at night." for i in range(20)}
    texts |= {"raises": f"The {RAISES} grows by the river.", "kills": f"The {KILLS} is in flower."}
    file = write(tmp_path / "rows.jsonl", texts)
    ingest([file], "poison", "handbook", None, False, False)
    deaths = -1
    command = [sys.executable, "-m", "tests.e2e.poisoned"]
    environment = stack._environment() | {"MEMBANK_MAX_ATTEMPTS": "2"}

    def done() -> bool:
        """As a supervisor does: whoever has died is started again."""
        nonlocal deaths
        if stack.processes.get("worker") is None:
            deaths += 1
            stack.processes.start("worker", command, environment)
        return settled()

    assert wait_until(done, 240)
    stack.processes.stop("worker")
    stack.service("worker")
    failed = rows(
        "SELECT document_id, attempts, error, traceback <> '' FROM dead_letter l"
        " JOIN tenant t ON t.id = l.tenant_id WHERE t.name = 'poison' ORDER BY 1"
    )
    # A worker that died cannot tell of it: the next one that finds the attempts used up does.
    assert [row[0] for row in failed] == ["kills", "raises"]
    assert failed[0][2] == "MembankError: the worker died on every attempt"
    assert failed[1][1:] == (2, "ValueError: the encoder does not like this text", True)
    assert deaths == 2
    assert rows(
        "SELECT count(*) FROM memory_blob m JOIN tenant t ON t.id = m.tenant_id"
        " WHERE t.name = 'poison'"
    ) == [(20,)]


@contextmanager
def claims_written_down() -> Iterator[None]:
    """Every claim of a chunk goes into a table `claimed`, beside which no worker would start."""
    with psycopg.connect(_plain_owner(), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE claimed (chunk bigint);"
            "GRANT INSERT ON claimed TO membank_worker;"
            "CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO claimed VALUES (NEW.chunk_id); RETURN NULL; END $$;"
            "CREATE TRIGGER claimed AFTER UPDATE ON outbox FOR EACH ROW"
            " WHEN (NEW.lease_token IS DISTINCT FROM OLD.lease_token AND NEW.chunk_id IS NOT NULL)"
            " EXECUTE FUNCTION write_down()"
        )
        yield
        connection.execute("DROP TRIGGER claimed ON outbox; DROP TABLE claimed")
        connection.execute("DROP FUNCTION write_down")


def _plain_owner() -> str:
    url = database_url("owner").set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def worked_off(log: Path) -> int:
    """Rows that a worker says it has done."""
    return sum(map(int, re.findall(r"membank\.drain\S* succeeded in \S+: (\d+)", log.read_text())))


@pytest.mark.timeout(300)
def test_two_workers_on_one_queue_encode_no_chunk_twice(stack: Stack, tmp_path: Path) -> None:
    make_tenant("shared", ("alice", []))
    command = [sys.executable, "-m", "workers.worker"]
    stack.processes.start("worker2", command, stack._environment())
    logs = [stack.home / "logs" / f"{name}.log" for name in ("worker", "worker2")]
    assert wait_until(lambda: " ready." in logs[1].read_text(), 120)
    before = [worked_off(log) for log in logs]
    texts = {f"d{i}": f"Rule {i} says that room {i} is locked. " * 60 for i in range(40)}
    file = write(tmp_path / "rows.jsonl", texts)
    with claims_written_down():
        report = ingest([file], "shared", "handbook", None, False, False)
        assert report.chunks > 150
        assert wait_until(settled, 240)
        stack.processes.stop("worker2")  # it says how much it has done when its task ends
        count = "SELECT count(*), count(DISTINCT chunk) FROM claimed"
        with psycopg.connect(_plain_owner()) as connection:
            assert connection.execute(count).fetchone() == (report.chunks, report.chunks)
    assert wait_until(lambda: sum(map(worked_off, logs)) - sum(before) == report.chunks, 60), [
        worked_off(log) for log in logs
    ]
    assert all(worked_off(log) > then for log, then in zip(logs, before, strict=True))
