"""Memories that change while an answer is being given, through the real database and models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.answer import recall as recalling
from app.answer.recall import Recall
from app.answer.retrieval import Found, Reader, find
from app.answer.service import Answer, ask
from app.db.session import Asker, transaction
from app.errors import UsageError
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from app.queue import status
from app.runtime.models import models
from app.settings import settings
from tests.e2e.conftest import Run, make_tenant

LEAVE = "How many days of annual leave does an employee of Curio have?"
SAFE = "What is the code of the safe in the attic of Curio?"
NEW_SAFE = "The code of the safe in the attic of Curio is 330077."
FACTS = {
    "leave": "# Annual Leave\n\nEvery employee of Curio has 27 days of annual leave.\n",
    "dogs": "# Office Dogs\n\nAt Curio dogs may come to the office on Friday.\n",
    "safe": "# Attic Safe\n\nThe code of the safe in the attic of Curio is 112299.\n",
}


@pytest.fixture(scope="module")
def folder(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("curio")
    make_tenant("curio", ("hana", ["keys"]))
    for name, words in FACTS.items():
        (root / f"{name}.md").write_text(words)
        allow = ("group:keys",) if name == "safe" else ("everyone",)
        ingest([root / f"{name}.md"], "curio", "handbook", allow, False, True)
    return root


@pytest.fixture(autouse=True)
def long_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader that comes with the program answers in a few words, before any refresh."""
    monkeypatch.setattr(settings(), "adapter", "none")


@pytest.fixture
def hana(folder: Path) -> Reader:
    return Reader.of("curio", "handbook", "hana")


@pytest.fixture
def at_a_refresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen when the answer first searches again, just before it does."""

    def arrange(happen: Callable[[], None]) -> None:
        waiting, usual = [happen], recalling.found_for

        def found_for(*values: Any) -> Found:
            if waiting:
                waiting.pop()()
            return usual(*values)

        monkeypatch.setattr(recalling, "found_for", found_for)

    return arrange


def change(statement: str, reader: Reader, **values: Any) -> None:
    whose = {"tenant": reader.asker.tenant, "principal": reader.asker.principal}
    with transaction(Asker("admin")) as connection:
        connection.execute(text(statement), whose | values)


def leave_the_group(reader: Reader) -> None:
    change("DELETE FROM group_member WHERE principal_id = :principal", reader)


def join_the_group(reader: Reader) -> None:
    change(
        "INSERT INTO group_member (tenant_id, group_id, principal_id) SELECT tenant_id, id,"
        " :principal FROM principal_group WHERE tenant_id = :tenant",
        reader,
    )


def edit(reader: Reader, old: str, new: str) -> None:
    change(
        "UPDATE document SET text = replace(text, :old, :new) WHERE tenant_id = :tenant",
        reader,
        old=old,
        new=new,
    )


def settle() -> None:
    assert wait_until(lambda: not any(status.queue().values()), 60)


def titles(answer: Answer) -> list[str]:
    return [memory.title for memory in answer.memories]


def prefix_tokens() -> int:
    return len(models().prompt.prefix)


def test_an_answer_whose_memories_stay_is_the_answer_without_refresh(hana: Reader) -> None:
    usual, refreshed = ask(hana, LEAVE, refresh=0), ask(hana, LEAVE, refresh=8)
    assert refreshed.answer == usual.answer
    assert (usual.refreshes, refreshed.refreshes > 0, refreshed.swaps) == (0, True, 0)
    assert refreshed.memories == usual.memories
    assert usual.timings_ms["refresh"] == 0 < refreshed.timings_ms["refresh"]


def test_a_right_that_is_revoked_in_mid_answer_ends_at_the_next_refresh(
    hana: Reader, at_a_refresh: Callable[[Callable[[], None]], None]
) -> None:
    """Nothing else is near enough, and still the memory does not stay."""
    at_a_refresh(lambda: leave_the_group(hana))
    try:
        answer = ask(hana, SAFE, refresh=8)
    finally:
        join_the_group(hana)
    assert answer.swaps == 1
    assert answer.usage["memory_tokens"] == prefix_tokens()
    assert titles(answer) == ["Attic Safe"]  # it was read until then


def test_a_text_that_is_changed_in_mid_answer_is_not_read_after_the_next_refresh(
    hana: Reader, at_a_refresh: Callable[[Callable[[], None]], None]
) -> None:
    def changed() -> None:
        edit(hana, "112299", "330077")
        settle()

    at_a_refresh(changed)
    try:
        answer = ask(hana, SAFE, refresh=8)
    finally:
        edit(hana, "330077", "112299")
        settle()
    assert answer.swaps == 1
    assert titles(answer) == ["Attic Safe", "Attic Safe"]
    old, new = answer.memories
    assert old.document_id == new.document_id
    assert old.id != new.id
    assert all(0 < (memory.attention or 0) < 1 for memory in answer.memories)


def test_only_what_was_not_there_before_is_loaded(
    hana: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    usual = recalling.load

    def load(request: Any, passages: Any, dtype: Any) -> Any:
        loaded.append([passage.title for passage in passages])
        return usual(request, passages, dtype)

    monkeypatch.setattr(recalling, "load", load)
    recall = Recall(hana.begin(), LEAVE, 2, -1.0)
    recall.read(find(hana, LEAVE, 1).passages)
    memories = recall.again(f"They have 27 days of annual leave. {NEW_SAFE}")
    assert memories is not None
    assert recall.again(f"They have 27 days of annual leave. {NEW_SAFE}") is None
    assert loaded == [["Annual Leave"], ["Attic Safe"]]
    assert [s.title for s in recall.sources()] == ["Annual Leave", "Attic Safe"]
    assert recall.swaps == 1


def test_memories_stay_when_a_refresh_finds_nothing_near_enough(hana: Reader) -> None:
    recall = Recall(hana.begin(), LEAVE, 1, 0.99)
    recall.read(find(hana, LEAVE, 1).passages)
    assert recall.again("They have 27 days.") is None
    leave = [source.title for source in recall.sources()]
    assert leave == ["Annual Leave"]


def test_the_command_refreshes_and_refuses_what_cannot_be(
    hana: Reader, membank_process: Run, membank_json: Callable[..., Any]
) -> None:
    where = ("ask", LEAVE, "--tenant", "curio", "--bank", "handbook", "--as", "hana")
    assert membank_json(*where, "--refresh-every", "8")["refreshes"] > 0
    refused = membank_process(*where, MEMBANK_REFRESH_EVERY="5")
    assert refused.returncode == 2
    assert "MEMBANK_REFRESH_EVERY='5'" in refused.stderr
    with pytest.raises(UsageError, match="refresh every 7"):
        ask(hana, LEAVE, refresh=7)
    with pytest.raises(UsageError, match="refresh every 16 tokens in mode rag"):
        ask(hana, LEAVE, mode="rag", refresh=16)


@pytest.mark.parametrize("mode", ["memory", "rag", "closed"])
def test_the_setting_counts_for_answers_from_memory(
    hana: Reader, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:

    monkeypatch.setattr(settings(), "refresh_every", 8)
    assert (ask(hana, LEAVE, mode=mode).refreshes > 0) == (mode == "memory")
