"""From a file to an answer with its source, through real servers, worker and models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.answer.ask import NOTHING, ask
from app.answer.retrieval import Reader, find
from app.db.session import Asker, transaction
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from tests import edges
from tests.e2e.conftest import Run, make_tenant

FACTS = {
    "acme": {
        "dogs": "# Office Dogs\n\nAt Acme dogs may come to the office on Friday.\n",
        "leave": "# Annual Leave\n\nEvery employee of Acme has 27 days of annual leave.\n",
    },
    "bolt": {
        "dogs": "# Office Dogs\n\nAt Bolt dogs may come to the office on Thursday.\n",
        "leave": "# Annual Leave\n\nEvery employee of Bolt has 31 days of annual leave.\n",
    },
}
SECRET = "# Vault Code\n\nThe code of the vault in the cellar is 774411.\n"
LEAVE = "How many days of annual leave does an employee have?"
VAULT = "What is the code of the vault in the cellar?"


@pytest.fixture(scope="module")
def folder(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("handbooks")
    for tenant, files in FACTS.items():
        make_tenant(tenant, ("alice", []), ("hana", ["hr"]))
        (root / tenant).mkdir()
        for name, words in files.items():
            (root / tenant / f"{name}.md").write_text(words)
        report = ingest([root / tenant], tenant, "handbook", None, False, True)
        assert (report.chunks, report.memories, report.failed) == (2, 2, [])
    (root / "vault.md").write_text(SECRET)
    ingest([root / "vault.md"], "acme", "handbook", ("group:hr",), False, True)
    return root


def settle() -> None:
    assert wait_until(lambda: not any(edges.queue().values()), 120)


@pytest.mark.parametrize(("tenant", "days"), [("acme", "27"), ("bolt", "31")])
def test_each_tenant_is_answered_from_its_own_bank(folder: Path, tenant: str, days: str) -> None:
    answer = ask(Reader.of(tenant, "handbook", "alice"), LEAVE)
    assert days in answer.answer
    assert [m.source for m in answer.memories] == [str(folder / tenant / "leave.md")]
    assert 0 < (answer.memories[0].attention or 0) < 1


def test_a_source_that_may_not_be_read_is_as_if_it_were_not_there(folder: Path) -> None:
    allowed = ask(Reader.of("acme", "handbook", "hana"), VAULT)
    assert "774411" in allowed.answer
    for mode in ("memory", "rag"):
        refused = ask(Reader.of("acme", "handbook", "alice"), VAULT, mode=mode)
        assert refused.answer == NOTHING
        assert refused.memories == []
    passages = find(Reader.of("acme", "handbook", "alice"), VAULT, 10).passages
    assert not any("774411" in passage.text for passage in passages)
    assert len(passages) == 2


def test_joining_and_leaving_a_group_counts_from_the_next_question(folder: Path) -> None:
    reader = Reader.of("acme", "handbook", "alice")
    add = text(
        "INSERT INTO group_member (tenant_id, group_id, principal_id)"
        " SELECT tenant_id, id, :alice FROM principal_group WHERE tenant_id = :tenant"
    )
    remove = text("DELETE FROM group_member WHERE principal_id = :alice")
    whose = {"tenant": reader.asker.tenant, "alice": reader.asker.principal}
    with transaction(Asker("admin")) as connection:
        connection.execute(add, whose)
    assert "774411" in ask(reader, VAULT).answer
    with transaction(Asker("admin")) as connection:
        connection.execute(remove, whose)
    assert ask(reader, VAULT).answer == NOTHING


def test_an_update_in_sql_changes_the_next_answer_and_never_serves_the_old(folder: Path) -> None:
    reader = Reader.of("acme", "handbook", "alice")
    edit = text(
        "UPDATE document SET text = replace(text, :old, :new)"
        " WHERE title = 'Annual Leave' AND tenant_id = :tenant"
    )
    whose = {"tenant": reader.asker.tenant}
    with transaction(Asker("admin")) as connection:
        connection.execute(edit, whose | {"old": "27", "new": "44"})
    assert not any("27" in passage.text for passage in find(reader, LEAVE, 10).passages)
    settle()
    after = ask(reader, LEAVE).answer
    assert "44" in after
    assert "27" not in after
    with transaction(Asker("admin")) as connection:
        connection.execute(edit, whose | {"old": "44", "new": "27"})
    settle()


def test_changing_what_is_not_encoded_encodes_nothing(folder: Path) -> None:
    with transaction(Asker("admin")) as connection:
        connection.execute(
            text("UPDATE document SET metadata = '{\"a\": 1}', source = source || '#'")
        )
        assert connection.execute(text("SELECT count(*) FROM outbox")).scalar_one() == 0
        connection.execute(text("UPDATE document SET source = rtrim(source, '#')"))


def test_ingesting_the_same_again_does_no_work(folder: Path) -> None:
    report = ingest([folder / "bolt"], "bolt", "handbook", None, False, True)
    assert {d.status for d in report.documents} == {"unchanged"}
    assert report.chunks == report.memories == 2


def test_the_command_gives_the_objects_of_the_design(
    stack: Stack, folder: Path, membank_json: Callable[..., Any], membank_process: Run
) -> None:
    where = ("--tenant", "bolt", "--bank", "handbook", "--as", "alice")
    asked = membank_process("ask", LEAVE, *where, "-k", "2", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    fields = {"answer", "mode", "memories", "timings_ms", "usage", "finished"}
    assert set(answer) == fields
    assert answer["mode"] == "memory"
    passage = {"id", "document_id", "title", "source", "text", "score", "heading", "start", "end"}
    passage.add("file_id")
    assert set(answer["memories"][0]) == passage | {"attention"}
    times = {"search", "load", "queue", "prefill", "first_token", "total"}
    assert set(answer["timings_ms"]) == times
    found = membank_json("search", LEAVE, *where)
    assert set(found) == {"results", "timings_ms"}
    assert set(found["results"][0]) == passage
    assert len(found["results"]) == 2
    closed = membank_json("ask", LEAVE, *where, "--mode", "closed", "--max-tokens", "4")
    assert closed["memories"] == []
    now = membank_json("status")
    assert now["running"] is True
    assert httpx.get(f"{now['api_url']}/openapi.json").status_code == 200
    assert {"processes", "database_url", "admin_database_url", "redis_url", "queue"} <= set(now)
    assert {p["name"] for p in now["processes"]} == {
        *("postgres", "valkey", "worker", "relay", "api")
    }


def test_forgetting_reaches_text_chunks_keys_and_blobs(
    folder: Path, tmp_path: Path, membank_json: Callable[..., Any], membank: Run
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = "The wifi password for guests is tulip-ocean-9. " * 20
    rows.write_text(json.dumps({"id": "wifi:guests", "title": "Wifi", "text": words}) + "\n")
    report = membank_json("ingest", str(rows), "--tenant", "bolt", "--bank", "handbook", "--wait")
    assert report["documents"][0]["id"] == "wifi:guests"
    assert report["memories"] == report["chunks"] >= 2
    receipt = membank_json("forget", "wifi:guests", "--tenant", "bolt")
    assert receipt["documents"] == 1
    assert receipt["chunks"] == receipt["keys"] == receipt["blobs"] == report["chunks"]
    for table in ("document", "chunk"):
        with transaction(Asker("admin")) as connection:
            left = connection.execute(
                text(f"SELECT count(*) FROM {table} WHERE text LIKE '%tulip-ocean%'")
            ).scalar_one()
        assert left == 0
    again = membank("forget", "wifi:guests", "--tenant", "bolt")
    assert again.returncode == 1
    assert "'wifi:guests' does not exist" in again.stderr


def test_rows_without_a_tenant_option_go_to_the_tenant_that_they_name(
    stack: Stack, tmp_path: Path, membank: Run
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {"id": f"d{i}", "title": "Colour", "text": f"The colour is {c}.", "tenant": t}
            )
            + "\n"
            for i, (t, c) in enumerate([("red-co", "red"), ("blue-co", "blue")])
        )
    )
    missing = membank("ingest", str(rows), "--bank", "b", "--json")
    assert missing.returncode == 1
    assert len(json.loads(missing.stdout)["failed"]) == 2
    made = membank("ingest", str(rows), "--bank", "b", "--create", "--wait", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["memories"] == 2
    by_tenant = {
        row["tenant"]: row["memories"] for row in edges.bank_status() if row["bank"] == "b"
    }
    assert by_tenant == {"red-co": 1, "blue-co": 1}
