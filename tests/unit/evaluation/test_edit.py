"""Edits swap an answer for another of its shape, everywhere in its passage."""

import pytest

from app.evaluation.questions import Passage, Question
from benchmarks import edit


def question(number: int, answer: str, text: str, asks: str = "Who?") -> Question:
    passage = Passage(f"p{number}", "T", text)
    return Question(f"q{number}", asks, (answer,), (passage,), (passage.id,), True)


QUESTIONS = [
    question(1, "Ann Lee", "Ann Lee came. Later Ann Lee left, not Ann Leeson."),
    question(2, "Bob Ray", "It was Bob Ray."),
    question(3, "1973", "In 1973 it was."),
    question(4, "12", "There are 12 of them."),
    question(5, "the blue one", "Nobody says it."),
    question(6, "Eve Orr", "It was Eve Orr.", asks="Who is Eve Orr?"),
]


@pytest.fixture(autouse=True)
def count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "count_tokens", lambda text: len(text.split()))


def test_every_mention_is_swapped_for_an_answer_of_the_same_shape() -> None:
    found = {one.question.id: one for one in edit.edits(QUESTIONS, 9, 0)}
    assert set(found) == {"q1", "q2", "q3", "q4"}
    assert found["q1"].new in ("Bob Ray", "Eve Orr")
    assert "Ann Lee " not in found["q1"].after
    assert found["q1"].after.count(found["q1"].new) == 2
    assert "Ann Leeson" in found["q1"].after
    assert (found["q3"].new, found["q4"].new) == ("12", "1973")


def test_the_same_seed_gives_the_same_edits() -> None:
    assert edit.edits(QUESTIONS, 3, 1) == edit.edits(QUESTIONS, 3, 1)
    assert len(edit.edits(QUESTIONS, 2, 1)) == 2
