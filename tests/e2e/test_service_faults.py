"""What a client of the HTTP service sees when something behind it fails, and whose answers meet."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.answer.ask import NOTHING
from app.bank.roles import BankRole
from app.db.session import Asker, transaction
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from app.upkeep.reconcile import reconcile
from tests import edges
from tests.e2e.conftest import make_tenant
from tests.edges import find_bank, grant, issue

SUBJECTS = {
    "leave": ("days of annual leave", (21, 34)),
    "notice": ("weeks of notice", (3, 9)),
    "parking": ("parking places for visitors", (12, 55)),
}
QUESTION = "How many days of annual leave are there?"


@pytest.fixture(scope="module")
def keys(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two companies with the same documents but for the numbers, encoded; a key of each."""
    found = {}
    for number, tenant in enumerate(("ebb", "tide")):
        make_tenant(tenant, ("alice", []))
        folder = tmp_path_factory.mktemp(tenant)
        for name, (what, numbers) in SUBJECTS.items():
            file = folder / f"{name}.md"
            file.write_text(f"# {name.title()}\n\nThere are {numbers[number]} {what}.\n")
        assert not ingest([folder], tenant, "handbook", None, False, True).failed
        found[tenant] = issue(tenant, "alice").token
    return found


def asked(url: str, key: str, question: str = QUESTION, **more: Any) -> httpx.Response:
    body = {"model": "handbook", "messages": [{"role": "user", "content": question}], **more}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_answers_of_different_tenants_in_one_batch_are_those_given_alone(
    url: str, keys: dict[str, str]
) -> None:
    cases = [
        (tenant, f"How many {what} are there?", k, mode)
        for what, _ in SUBJECTS.values()
        for k, mode in ((1, "memory"), (3, "memory"), (2, "rag"))
        for tenant in keys
    ]

    def one(case: tuple[str, str, int, str]) -> tuple[str, list[str]]:
        tenant, question, k, mode = case
        response = asked(url, keys[tenant], question, membank={"k": k, "mode": mode}, max_tokens=24)
        cited = response.json()["choices"][0]["message"]["annotations"]
        return said(response), [a["membank"]["document_id"] for a in cited]

    alone = [one(case) for case in cases]
    with ThreadPoolExecutor(len(cases)) as threads:
        together = list(threads.map(one, cases))
    assert together == alone
    for (tenant, question, k, mode), (answer, cited) in zip(cases, together, strict=True):
        assert 1 <= len(cited) <= k
        if (k, mode) == (1, "memory"):
            what = question.removeprefix("How many ").removesuffix(" are there?")
            numbers = next(n for name, n in SUBJECTS.values() if name == what)
            own, other = numbers if tenant == "ebb" else reversed(numbers)
            assert str(own) in answer
            assert str(other) not in answer


def test_without_a_database_it_says_so_and_comes_back_by_itself(
    url: str, stack: Stack, keys: dict[str, str]
) -> None:
    usual = said(asked(url, keys["ebb"]))
    assert stack.postgres
    stack.postgres.stop()
    response = asked(url, keys["ebb"])
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"
    assert "password" not in response.text
    assert "Retry-After" in response.headers
    assert httpx.get(f"{url}/health/live").status_code == 200
    stack.servers()
    assert said(asked(url, keys["ebb"])) == usual


def test_without_valkey_questions_are_answered(
    url: str, stack: Stack, keys: dict[str, str]
) -> None:
    usual = said(asked(url, keys["tide"]))
    assert stack.valkey
    stack.valkey.stop()
    assert said(asked(url, keys["tide"])) == usual
    stack.servers()


def test_a_memory_that_is_damaged_is_named_and_never_read(url: str, keys: dict[str, str]) -> None:
    tenant = find_bank("ebb", "handbook").tenant
    with transaction(Asker("admin")) as connection:
        damaged = connection.execute(
            text(
                "UPDATE memory_blob SET payload = set_byte(payload, 5000,"
                " 255 - get_byte(payload, 5000)) WHERE tenant_id = :t"
            ),
            {"t": tenant},
        ).rowcount
    assert damaged == len(SUBJECTS)
    response = asked(url, keys["ebb"])
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "damaged_memory"
    assert "damaged" in response.json()["error"]["message"]
    with transaction(Asker("admin")) as connection:
        # The way out: a memory without its row is found, and encoded again.
        connection.execute(text("DELETE FROM memory_blob WHERE tenant_id = :t"), {"t": tenant})
    reconcile()
    assert wait_until(lambda: not any(edges.queue().values()), 120)
    assert "21" in said(asked(url, keys["ebb"]))


def test_while_no_worker_comes_the_old_text_is_not_told(
    url: str, stack: Stack, keys: dict[str, str], tmp_path: Path
) -> None:
    make_tenant("lone", ("alice", []))
    key = issue("lone", "alice").token
    stack.processes.stop("worker", signal.SIGTERM, 20.0)
    file = tmp_path / "leave.md"
    file.write_text("# Leave\n\nThere are 19 days of annual leave.\n")
    ingest([file], "lone", "handbook", None, False, False)
    response = asked(url, key)
    assert said(response) == NOTHING
    assert response.json()["choices"][0]["message"]["annotations"] == []
    row = next(row for row in edges.bank_status() if row["tenant"] == "lone")
    assert row["pending"] > 0
    stack.service("worker")
    assert wait_until(lambda: not any(edges.queue().values()), 120)
    assert "19" in said(asked(url, key))


def test_files_that_were_put_in_are_stored_whoever_is_killed(
    url: str, stack: Stack, keys: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {issue('tide', 'alice', ('read', 'write')).token}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
        grant(find_bank("tide", "handbook"), "principal:alice", BankRole.WRITER)
        ids = []
        for n in range(6):
            rows = [{"id": f"{n}-{i}", "text": f"Locker {i} is on floor {n}."} for i in range(40)]
            file = ("rows.jsonl", "\n".join(map(json.dumps, rows)))
            made = client.post("/files", data={"purpose": "assistants"}, files={"file": file})
            ids.append(made.json()["id"])
        store = f"/vector_stores/vs_{find_bank('tide', 'handbook').id}"
        batch = client.post(f"{store}/file_batches", json={"file_ids": ids}).json()
        assert batch["status"] == "in_progress"
        for name in ("api", "worker"):
            running = stack.processes.get(name)
            assert running
            os.kill(running.pid, signal.SIGKILL)
        for name in ("api", "worker"):
            assert wait_until(lambda name=name: stack.processes.get(name) is None, 30)
            stack.service(name)

        def counts() -> dict[str, int]:
            answer = client.get(f"{store}/file_batches/{batch['id']}").json()
            found: dict[str, int] = answer["file_counts"]
            return found

        assert wait_until(lambda: counts()["in_progress"] == 0, 180, 0.5), counts()
        assert counts()["completed"] == len(ids)
        for id in ids:  # whoever comes next finds the bank as it was
            client.delete(f"/files/{id}")


def test_a_service_that_is_killed_under_load_leaves_no_connection_behind(
    url: str, stack: Stack, keys: dict[str, str]
) -> None:
    usual = {tenant: said(asked(url, key)) for tenant, key in keys.items()}

    def one(number: int) -> str | None:
        tenant = ("ebb", "tide")[number % 2]
        try:
            answer = said(asked(url, keys[tenant]))
        except httpx.TransportError:
            return None
        return None if answer == usual[tenant] else f"{tenant} is told {answer!r}"

    running = stack.processes.get("api")
    assert running
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(one, range(24))
        os.kill(running.pid, signal.SIGKILL)
        assert wait_until(lambda: stack.processes.get("api") is None, 30)
        stack.service("api")
        assert not [wrong for wrong in answers if wrong]

    def connections() -> int:
        with transaction(Asker("admin")) as connection:
            return int(
                connection.execute(
                    text("SELECT count(*) FROM pg_stat_activity WHERE usename = 'membank_app'")
                ).scalar_one()
            )

    assert {tenant: said(asked(url, key)) for tenant, key in keys.items()} == usual
    assert connections() <= 16
