"""What goes wrong is named in one line; what was stored stays; what was queued is done."""

import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import text

from app.answer.ask import ask
from app.answer.retrieval import Reader
from app.db.session import Asker, transaction
from app.errors import BlobError
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from app.settings import settings
from tests import edges
from tests.e2e.conftest import Run, make_tenant

WHERE = ("--tenant", "fault", "--bank", "handbook")
AS = (*WHERE, "--as", "alice")


@pytest.fixture(scope="module")
def bank(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    make_tenant("fault", ("alice", []))
    file = tmp_path_factory.mktemp("fault") / "badge.md"
    file.write_text("# Badges\n\nThe badge of a visitor is orange and is worn on the chest.\n")
    ingest([file], "fault", "handbook", None, False, True)
    return Reader.of("fault", "handbook", "alice")


def kill(stack: Stack, name: str) -> None:
    process = stack.processes.get(name)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: stack.processes.get(name) is None, 60)


def settled() -> bool:
    return wait_until(lambda: not any(edges.queue().values()), 120)


def one_memory_per_chunk(tenant: int) -> tuple[int, int, int]:
    with transaction(Asker("admin")) as connection:
        row = connection.execute(
            text(
                "SELECT (SELECT count(*) FROM chunk WHERE tenant_id = :t),"
                " (SELECT count(DISTINCT chunk_id) FROM memory_blob WHERE tenant_id = :t),"
                " (SELECT count(*) FROM memory_key WHERE tenant_id = :t)"
            ),
            {"t": tenant},
        ).one()
    return row[0], row[1], row[2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ask", "Why?", "--tenant", "no-such", "--bank", "b", "--as", "a"), 1, "'no-such'"),
        (("ask", "Why?", "--tenant", "fault", "--bank", "no-such", "--as", "a"), 1, "'no-such'"),
        (("ask", "Why?", *WHERE, "--as", "nobody"), 1, "'nobody'"),
        (("ask", "Why?", *AS, "-k", "0"), 2, "k is 0"),
        (("ask", "  ", *AS), 2, "question is empty"),
        (("ask", "why " * 10_000, *AS), 2, "10000 words"),
        (("ask", "Why?", *AS, "--mode", "guess"), 2, "'guess'"),
        (("ingest", "/no/such/file.md", *WHERE), 1, "/no/such/file.md"),
        (("ingest", "pyproject.toml", *WHERE), 1, "pyproject.toml"),
        (("ingest", "README.md", *WHERE, "--allow", "group:nobody"), 1, "group nobody"),
        (("ingest", "README.md", *WHERE, "--allow", "friends"), 2, "'friends'"),
        (("tenant", "add", "fault"), 1, "exists already"),
        (("tenant", "add", " "), 2, "cannot name a tenant"),
        (("bank", "add", "handbook", "--tenant", "fault"), 1, "exists already"),
    ],
)
def test_a_mistake_is_one_plain_line(
    bank: Reader, membank: Run, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = membank(*arguments)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if line.startswith("membank: ")]
    assert len(lines) == 1
    assert says in lines[0]


def test_bad_files_are_named_and_hold_no_other_up(
    bank: Reader, membank_process: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "Tea is at five."}\nnot json\n')
    (tmp_path / "big.txt").write_text("word " * 300_000)
    done = membank_process(
        "ingest", str(tmp_path), *WHERE, "--json", MEMBANK_MAX_DOCUMENT_BYTES="1000000"
    )
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [d["id"] for d in report["documents"]] == ["a"]
    told = " ".join(failure["error"] for failure in report["failed"])
    assert len(report["failed"]) == 4
    for name in ("empty.md", "latin.txt", "rows.jsonl:2", "big.txt"):
        assert name in told + " ".join(f["source"] for f in report["failed"])
    assert "Traceback" not in done.stderr
    assert settled()


def test_a_good_member_of_an_archive_answers_beside_a_bad_and_a_hidden_one(
    stack: Stack, bank: Reader, membank: Run, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "rules.zip", "w") as made:
        made.writestr("house/lift.md", "# Lift\n\nThe lift of the house is purple.\n")
        made.writestr("house/latin.txt", b"caf\xe9")
        made.writestr("house/.draft.md", "The lift is brown.")
    file = tmp_path / "rules.zip"
    done = membank("ingest", str(file), *WHERE, "--json", "--wait")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    told = [(d["source"], d["status"]) for d in report["documents"]]
    assert told == [(f"{file}!house/lift.md", "new")]
    assert report["memories"] == 1
    (failure,) = report["failed"]
    assert failure["source"] == f"{file}!house/latin.txt"
    assert failure["error"].startswith(f"{file}!house/latin.txt: byte 3 (0xe9) is not UTF-8")
    assert "Traceback" not in done.stderr
    assert "purple" in ask(bank, "What colour is the lift of the house?").answer
    again = json.loads(membank("ingest", str(file), *WHERE, "--json").stdout)
    assert [(d["id"], d["status"]) for d in again["documents"]] == [
        (report["documents"][0]["id"], "unchanged")
    ]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MEMBANK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "127.0.0.1:1/none"),
        ("MEMBANK_DATABASE_URL", "mysql://nobody@127.0.0.1/none", "only Postgres"),
        ("MEMBANK_HOME", "/tmp/membank-never-started", "membank up"),
        ("MEMBANK_TOP_K", "many", "MEMBANK_TOP_K='many'"),
    ],
)
def test_a_server_that_is_not_there_is_named(
    bank: Reader,
    membank: Run,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    says: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        settings.cache_clear()
        done = membank("ask", "What colour is the badge?", *AS)
    settings.cache_clear()
    assert done.returncode in (1, 2)
    assert says in done.stderr


def test_a_model_that_is_not_there_is_named(bank: Reader, membank_process: Run) -> None:
    missing = "/no/such/model"
    done = membank_process("ask", "What colour is the badge?", *AS, MEMBANK_MODEL=missing)
    assert done.returncode in (1, 2)
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bank_of_another_model_is_refused(bank: Reader, membank: Run) -> None:
    with transaction(Asker("admin")) as connection:
        connection.execute(
            text("INSERT INTO encoder_profile (tenant_id, id, spec) VALUES (:t, 'other', '{}')"),
            {"t": bank.asker.tenant},
        )
        connection.execute(
            text("INSERT INTO bank (tenant_id, name, profile_id) VALUES (:t, 'foreign', 'other')"),
            {"t": bank.asker.tenant},
        )
    done = membank("ask", "Why?", "--tenant", "fault", "--bank", "foreign", "--as", "alice")
    assert done.returncode == 1
    assert "bank 'foreign' is encoded under profile other" in done.stderr


def test_a_flipped_byte_in_a_blob_is_an_error_and_never_an_answer(bank: Reader) -> None:
    flip = text(
        "UPDATE memory_blob SET payload ="
        " set_byte(payload, 5000, 255 - get_byte(payload, 5000)) WHERE tenant_id = :t"
    )
    whose = {"t": bank.asker.tenant}
    with transaction(Asker("admin")) as connection:
        connection.execute(flip, whose)
    with pytest.raises(BlobError, match=r"memory \d+ of document .* damaged"):
        ask(bank, "What colour is the badge of a visitor?")
    with transaction(Asker("admin")) as connection:
        connection.execute(flip, whose)
    assert "orange" in ask(bank, "What colour is the badge of a visitor?").answer


def test_valkey_down_loses_nothing(stack: Stack, bank: Reader, tmp_path: Path) -> None:
    kill(stack, "valkey")
    file = tmp_path / "pool.md"
    file.write_text("# Pool\n\nThe pool opens at seven.\n")
    report = ingest([file], "fault", "handbook", None, False, True)
    assert (len(report.documents), report.pending) == (1, 1)
    assert report.asleep is not None
    assert "Valkey at 127.0.0.1" in report.asleep
    assert "nothing is lost" in report.asleep
    stack.servers()
    assert settled()
    assert "seven" in ask(bank, "When does the pool open?").answer


def test_everything_emptied_from_valkey_is_woken_again(
    stack: Stack, bank: Reader, tmp_path: Path
) -> None:
    import redis

    from app.db.addresses import redis_url

    file = tmp_path / "sauna.md"
    file.write_text("# Sauna\n\nThe sauna is hot.\n")
    ingest([file], "fault", "handbook", None, False, False)
    with redis.Redis.from_url(redis_url()) as valkey:
        valkey.flushall()
    assert settled()


def test_a_worker_killed_in_the_middle_leaves_exactly_one_memory_per_chunk(
    stack: Stack, tmp_path: Path
) -> None:
    make_tenant("killed", ("alice", []))
    reader = Reader.of("killed", "handbook", "alice")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"doc-{i}",
                    "title": f"Rule {i}",
                    "text": f"Rule number {i} says that room {i} is locked at night. " * 12,
                }
            )
            + "\n"
            for i in range(40)
        )
    )
    report = ingest([rows], "killed", "handbook", None, False, False)
    tenant = reader.asker.tenant
    assert tenant is not None
    assert report.chunks > 60
    assert wait_until(lambda: one_memory_per_chunk(tenant)[2] > 0, 60)
    kill(stack, "worker")
    assert one_memory_per_chunk(tenant)[2] < report.chunks
    stack.service("worker")
    assert settled()
    assert one_memory_per_chunk(tenant) == (report.chunks, report.chunks, report.chunks)


def test_a_worker_that_gets_sigterm_in_a_batch_holds_nothing_when_it_has_ended(
    stack: Stack, bank: Reader, tmp_path: Path
) -> None:
    def held() -> int:
        return edges.queue()["encoding"]

    file = tmp_path / "log.md"
    file.write_text("\n\n".join(f"# Entry {i}\n\n{'The log of the day. ' * 30}" for i in range(40)))
    ingest([file], "fault", "handbook", None, False, False)
    assert wait_until(lambda: held() > 0, 60)
    process = stack.processes.get("worker")
    assert process is not None
    os.kill(process.pid, signal.SIGTERM)
    assert wait_until(lambda: stack.processes.get("worker") is None, 120)
    with transaction(Asker("admin")) as connection:
        left = connection.execute(
            text("SELECT count(lease_token), coalesce(max(attempts), 0) FROM outbox")
        ).one()
    assert tuple(left) == (0, 0)
    stack.service("worker")
    assert settled()
    assert bank.asker.tenant is not None
    assert len(set(one_memory_per_chunk(bank.asker.tenant))) == 1


def test_a_document_inserted_by_sql_is_split_and_encoded(stack: Stack, bank: Reader) -> None:
    with transaction(Asker("admin")) as connection:
        connection.execute(
            text(
                "INSERT INTO document (tenant_id, bank_id, id, source, title, text, content_hash)"
                " VALUES (:t, :b, 'gate', 'sql', 'Gate', 'The gate is green.', '')"
            ),
            {"t": bank.asker.tenant, "b": bank.bank},
        )
    assert settled()
    assert "green" in ask(bank, "What colour is the gate?").answer
