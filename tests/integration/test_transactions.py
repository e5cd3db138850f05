"""Who begins a transaction: edges alone; and what is made in one is made whole or not at all."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from app.access.identity import Identity
from app.access.keys import SCOPES
from app.api.openai import vector_stores
from app.api.openai.vector_stores import CreateStore, StoreOptions
from app.db.session import Asker
from app.errors import ForbiddenError
from tests import edges
from tests.conftest import Company, ask

ROOT = Path(__file__).parents[2]
OPENERS = {"transaction", "of_tenant", "keeping"}
# A request, a command, a document, a page of maintenance, a claim of work: each begins its own.
EDGES = {
    "app/access/identity.py": "who shows a key is looked up before anything else is done",
    "app/access/tenants.py": "of_tenant, which is one of them",
    "app/answer/retrieval.py": "a question is let in, searched and noted around the embedder",
    "app/answer/ask.py": "what an answer was made of is noted after the model",
    "app/db/schema.py": "checks of a process that starts",
    "app/db/tenants.py": "the next tenant of a round",
    "app/ingest/command.py": "the command's own looks",
    "app/ingest/storing.py": "a document is stored, after it was split",
    "app/ingest/wait.py": "a look at the progress, again and again",
    "app/queue/encoding.py": "a batch of memories, around the object store",
    "app/queue/outbox.py": "a claim, and work handed back",
    "app/search/indexes.py": "a bank's index",
    "app/search/search.py": "a search, after its question was embedded",
    "app/store/blobs.py": "rights, then bytes, which may be elsewhere",
    "app/store/rewrite.py": "rows around the object store",
    "app/store/unneeded.py": "rows around the object store",
    "app/demo/sample.py": "the demo's tenants",
}
FOLDERS = ("app/api/", "app/commands/", "app/upkeep/", "workers/", "benchmarks/")


def _opens(file: Path) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OPENERS
        for node in ast.walk(ast.parse(file.read_text()))
    )


def test_only_edges_begin_a_transaction() -> None:
    found = {
        str(file.relative_to(ROOT))
        for folder in ("app", "workers", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
        if _opens(file)
    }
    assert {file for file in found if not file.startswith(FOLDERS)} == set(EDGES)


class _KilledError(Exception):
    """The process is no more."""


@pytest.fixture
def killed() -> Iterator[dict[str, int]]:
    """Statements are counted in `seen`; the one of the number `at` is never sent."""
    state = {"seen": 0, "at": -1}

    def count(*_: Any) -> None:
        state["seen"] += 1
        if state["seen"] == state["at"]:
            raise _KilledError

    event.listen(Engine, "before_cursor_execute", count)
    yield state
    event.remove(Engine, "before_cursor_execute", count)


def _everything(company: Company) -> list[tuple[Any, ...]]:
    admin = Asker("admin")
    return [
        *ask(admin, "SELECT id, name, metadata::text FROM bank ORDER BY id"),
        *ask(admin, "SELECT bank_id, grantee, role FROM bank_member ORDER BY 1, 2"),
        *ask(admin, "SELECT bank_id, file_id FROM bank_file ORDER BY 1, 2"),
        *ask(admin, "SELECT count(*) FROM outbox"),
    ]


def test_a_vector_store_whose_making_is_cut_off_anywhere_leaves_nothing(
    company: Company, killed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        id = "profile-of-the-tests"

        @staticmethod
        def json() -> str:
            return "{}"

    monkeypatch.setattr(vector_stores, "profile", Encoder)
    alice = company.reader("alice")
    file = edges.upload(alice, "a.md", "assistants", b"text")
    who = Identity(company.name, "alice", frozenset(SCOPES[:2]), alice)
    body = CreateStore(
        name="new", metadata={"of": "alice"}, file_ids=[file.id], membank=StoreOptions(closed=True)
    )
    before = _everything(company)
    at = 0
    while True:
        at += 1
        killed |= {"seen": 0, "at": at}
        try:
            made = vector_stores.create_store(body, who)
        except _KilledError:
            killed["at"] = -1
            assert _everything(company) == before, f"killed at statement {at}"
            continue
        break
    killed["at"] = -1
    assert at > 8, "there was hardly anything to cut off"
    assert made.file_counts.total == 1
    bank = edges.find_bank(company.name, "new")
    assert edges.members_of(bank) == {"principal:alice": "admin"}


def test_a_reader_changes_and_removes_no_bank_and_one_it_may_not_see_is_not_there(
    company: Company,
) -> None:
    bob = company.reader("bob")
    who = Identity(company.name, "bob", frozenset(SCOPES[:2]), bob)
    id = f"vs_{company.bank.id}"
    update = vector_stores.UpdateStore(name="other")
    with pytest.raises(ForbiddenError):
        vector_stores.update_store(id, update, who)
    with pytest.raises(ForbiddenError):
        vector_stores.delete_store(id, who)
    edges.revoke(company.bank, "everyone")
    for call in (
        lambda: vector_stores.update_store(id, update, who),
        lambda: vector_stores.delete_store(id, who),
    ):
        with pytest.raises(Exception, match="closed to you"):
            call()
    assert ask(Asker("admin"), "SELECT name FROM bank") == [("handbook",)]


def test_an_administrator_without_a_principal_signs_for_nobody(company: Company) -> None:
    admin = Asker("admin", company.tenant)
    assert ask(admin, "SELECT current_tenant(), current_principal()") == [(None, None)]
    alice = company.reader("alice").in_role("admin")
    assert ask(alice, "SELECT current_tenant(), current_principal()") == [
        (company.tenant, alice.principal)
    ]
