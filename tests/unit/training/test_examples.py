"""What the reader is shown: memories as a search brings them, the same for the same seed."""

from app.evaluation.abstention import ABSTENTION, abstains
from tests.unit.training.conftest import examples


def test_memories_stand_in_the_order_of_their_relevance() -> None:
    drawn, _ = examples()
    for position in range(100):
        relevances = drawn.at(position).relevances
        assert list(relevances) == sorted(relevances, reverse=True)
        assert 1 <= len(relevances) <= 8


def test_the_right_memory_is_there_or_the_answer_is_that_none_is() -> None:
    drawn, _ = examples()
    told = [drawn.asked(position) for position in range(400)]
    for one in told:
        assert one.question is not None
        own = one.question.replace("?", " is ")
        assert any(text.startswith(own) for text in one.texts) == (one.answer != ABSTENTION)
    share = sum(one.answer == ABSTENTION for one in told) / len(told)
    assert 0.02 < share < 0.1
    assert {len(one.texts) for one in told} >= {1, 2, 3, 4, 5, 8}


def test_a_question_without_answer_gets_no_passage_that_holds_one() -> None:
    drawn, _ = examples()
    for position in range(400):
        one = drawn.asked(position)
        if one.answer == ABSTENTION:
            assert one.question is not None
            answer = drawn._rows[int(one.question[5:-1])].answers[0]
            assert not any(text.endswith(f" {answer}") for text in one.texts)


def test_the_same_seed_shows_the_same() -> None:
    first, again, other = examples(seed=1)[0], examples(seed=1)[0], examples(seed=2)[0]
    places = range(90)
    assert [first.at(p) for p in places] == [again.at(p) for p in places]
    assert [first.at(p) for p in places] != [other.at(p) for p in places]


def test_an_epoch_shows_each_row_once() -> None:
    drawn, _ = examples(40)
    assert len({drawn.asked(position).question for position in range(40, 80)}) == 40


def test_plain_text_stands_beside_other_passages_memories() -> None:
    drawn, _ = examples()
    found = [drawn.at(position) for position in range(400)]
    plain = [one for one in found if one.question is None]
    assert 25 < len(plain) < 80
    assert all(one.texts and one.answer not in one.texts for one in plain)
    assert all(list(one.relevances) == sorted(one.relevances, reverse=True) for one in plain)


def test_abstention_is_recognised_in_other_words_around_it() -> None:
    assert abstains("Not in the bank.")
    assert abstains("not in the bank")
    assert abstains("")
    assert not abstains("Not in the bank's vault but in Paris"[4:])
    assert not abstains("Paris")
