"""The long document holds what its questions are about, anywhere in it."""

import pytest

from app.errors import UsageError
from app.evaluation.questions import Passage, Question
from benchmarks import long


def question(number: int) -> Question:
    gold = Passage(f"g{number}", f"G{number}", f"gold{number} " * 20)
    other = Passage(f"o{number}", f"O{number}", f"other{number} " * 20)
    return Question(f"q{number}", "Who?", (f"gold{number}",), (gold, other), (gold.id,), True)


QUESTIONS = [question(number) for number in range(30)]


@pytest.fixture(autouse=True)
def count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "count_tokens", lambda text: len(text.split()))


def test_every_gold_passage_is_in_it_however_short_it_may_be() -> None:
    text, size = long.document(QUESTIONS, 10, 1, 0)
    assert all(text.count(f"gold{number} ") == 20 for number in range(10))
    assert "gold10" not in text
    assert size == len(text.split())


def test_other_passages_make_it_as_long_as_it_is_to_be() -> None:
    text, size = long.document(QUESTIONS, 2, 500, 0)
    assert 500 <= size < 530
    assert "gold5 " in text


def test_the_gold_passages_do_not_stand_at_its_beginning() -> None:
    text, _ = long.document(QUESTIONS, 5, 1000, 0)
    places = [text.index(f"gold{number} ") / len(text) for number in range(5)]
    assert max(places) > 0.5


def test_too_little_text_is_said() -> None:
    with pytest.raises(UsageError, match="asks for 100000"):
        long.document(QUESTIONS, 5, 100_000, 0)
