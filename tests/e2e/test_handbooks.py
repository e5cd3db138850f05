"""The sample handbooks of two companies: all of each is remembered, found, and kept from the
other."""

import pytest

from app.answer.ask import ask
from app.answer.retrieval import Reader, find
from app.demo.sample import BANK, TENANTS, Question, fill, questions
from app.local.stack import Stack
from tests import edges

QUESTIONS = questions()
# Those that the default model reads right in both handbooks.
READ_RIGHT = ("sick-leave.md", "health-insurance.md", "visitor-badges.md")


@pytest.fixture(scope="module")
def filled(stack: Stack) -> int:
    """Both tenants with their handbooks: how many memories they have."""
    return fill()


def reader_of(tenant: str) -> Reader:
    return Reader.of(tenant, BANK, "hana")


def test_every_chunk_of_every_document_has_a_memory(filled: int) -> None:
    rows = [row for row in edges.bank_status() if row["tenant"] in TENANTS]
    assert len(rows) == len(TENANTS)
    assert [row["documents"] for row in rows] == [21, 21]
    assert all(row["chunks"] == row["memories"] >= row["documents"] for row in rows)
    assert sum(row["memories"] for row in rows) == filled
    assert not any(row["pending"] or row["failed"] for row in rows)


@pytest.mark.parametrize("tenant", TENANTS)
def test_search_finds_the_document_that_answers(filled: int, tenant: str) -> None:
    reader = reader_of(tenant)
    missed = []
    for asked in QUESTIONS:
        # One question has another document before its own.
        passages = find(reader, asked.question, 2).passages
        assert len(passages) == 2
        assert all(f"/{tenant}/" in passage.source for passage in passages)
        if not any(passage.source.endswith(f"/{asked.file}") for passage in passages):
            missed.append(asked.question)
    assert missed == []


@pytest.mark.parametrize("asked", [q for q in QUESTIONS if q.file in READ_RIGHT])
def test_answers_are_of_the_own_handbook_and_hold_nothing_of_the_other(
    filled: int, asked: Question
) -> None:
    for tenant in TENANTS:
        answer = ask(reader_of(tenant), asked.question, max_tokens=32)
        assert any(right in answer.answer for right in asked.answers[tenant])
        assert [memory.source.rsplit("/", 2)[1:] for memory in answer.memories] == [
            [tenant, asked.file]
        ]
        (other,) = set(TENANTS) - {tenant}
        leaks = set(asked.answers[other]) - set(asked.answers[tenant])
        assert leaks
        assert not any(leak in answer.answer for leak in leaks)
