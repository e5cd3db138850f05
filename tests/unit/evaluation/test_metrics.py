"""Metrics against values worked out by hand, intervals against the normal approximation."""

import math
import random
from statistics import fmean, stdev

import pytest

from app.evaluation.metrics import contains, difference, exact, f1, interval, normalise


def test_case_punctuation_articles_and_spaces_do_not_count() -> None:
    assert normalise("  The U.S.\tArmy,  an  ARMY of a kind! ") == "us army army of kind"
    assert normalise("Theatre and another") == "theatre and another"


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("It began in October 1973.", ["October 1973", "1973"], 1.0),
        ("It began in 19735.", ["1973"], 0.0),
        ("An army of the U.S.", ["army of us"], 1.0),
        ("Nothing of it.", ["October"], 0.0),
        ("The band is called The The.", ["the"], 0.0),
        ("", [], 1.0),
        ("Something.", [], 0.0),
    ],
)
def test_contained_means_whole_words(answer: str, right: list[str], expected: float) -> None:
    assert contains(answer, right) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("in October 1973", ["October 1973"], 0.8),
        ("in October 1973", ["May", "October", "in 1973 October"], 1.0),
        ("one one two", ["one two two"], 2 / 3),
        ("Paris", ["London"], 0.0),
        ("the", ["London"], 0.0),
        ("the", [], 1.0),
        ("London", [], 0.0),
    ],
)
def test_f1_is_that_of_the_best_right_answer(
    answer: str, right: list[str], expected: float
) -> None:
    assert f1(answer, right) == pytest.approx(expected)


def test_exact_is_equality_after_normalisation() -> None:
    assert exact("The October, 1973", ["May", "october 1973"]) == 1.0
    assert exact("October 1973 or so", ["October 1973"]) == 0.0
    assert exact("", []) == 1.0


def test_an_interval_is_that_of_the_normal_approximation() -> None:
    drawn = random.Random(1)
    values = [drawn.random() for _ in range(400)]
    found = interval(values)
    half = 1.96 * stdev(values) / math.sqrt(len(values))
    assert found.mean == pytest.approx(fmean(values))
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)
    assert interval(values) == found
    assert interval(values, seed=1) != found


def test_a_paired_difference_is_sure_where_the_two_move_together() -> None:
    drawn = random.Random(2)
    base = [drawn.random() for _ in range(200)]
    values = [value - 0.01 * (i % 2) for i, value in enumerate(base)]
    found = difference(values, base)
    assert found.mean == pytest.approx(-0.005)
    assert -0.006 < found.low < found.high < -0.004
    unpaired = interval(values)
    assert unpaired.high - unpaired.low > 20 * (found.high - found.low)


def test_no_values_or_unequal_numbers_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])
    with pytest.raises(ValueError, match="argument"):
        difference([1.0], [1.0, 2.0])
