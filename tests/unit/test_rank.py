"""The order of passages by cosine and words: what moves them, and what does not."""

import math
import re
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.search import rank
from app.search.rank import best as ranked


def best(question: str, texts: list[str], cosines: list[float], k: int) -> list[int]:
    return [one.index for one in ranked(question, texts, cosines, k)]


WORDS = st.lists(st.sampled_from(["ann", "bo", "cy", "work", "works", "worked", "17"]), max_size=6)
PASSAGES = st.lists(st.tuples(WORDS.map(" ".join), st.floats(-1, 1)), max_size=12)


def test_a_rare_word_of_the_question_goes_before_a_slightly_nearer_key() -> None:
    texts = ["notice is given in writing", "error E4711 is a lost lease", "an error is logged"]
    assert best("What is error E4711?", texts, [0.60, 0.55, 0.58], 3)[0] == 1


def test_words_that_all_texts_have_say_nearly_nothing() -> None:
    texts = ["the cat sat there", "a dog lay there", "one of them is there"]
    assert best("there", texts, [0.9, 0.5, 0.1], 3) == [0, 1, 2]


def test_a_far_key_needs_more_than_a_common_word() -> None:
    texts = ["leave is 20 days"] * 1 + [f"leave of kind {i}" for i in range(9)] + ["days"]
    assert best("how many days of leave", texts, [0.8, *[0.5] * 9, 0.0], 1) == [0]


def test_endings_do_not_tell_words_apart() -> None:
    texts = ["nothing of it", "they worked on policies", "else"]
    assert best("working policy", texts, [0.5, 0.4, 0.3], 1) == [1]


def test_without_a_question_the_order_stays() -> None:
    assert best("", ["b", "a", "c"], [0.3, 0.2, 0.1], 2) == [0, 1]


def test_the_same_text_comes_once_as_its_first() -> None:
    assert best("", ["a", "a", "b", "a"], [0.4, 0.3, 0.2, 0.1], 5) == [0, 2]
    assert best("b", ["a", "a", "b", "a"], [0.4, 0.4, 0.4, 0.4], 5) == [2, 0]


@given(WORDS.map(" ".join), PASSAGES, st.integers(1, 5))
def test_k_different_texts_come_and_a_smaller_k_is_their_beginning(
    question: str, passages: list[tuple[str, float]], k: int
) -> None:
    passages = sorted(passages, key=lambda one: -one[1])
    texts, cosines = [t for t, _ in passages], [c for _, c in passages]
    whole = best(question, texts, cosines, len(texts))
    assert len({texts[i] for i in whole}) == len(whole) == len(set(texts))
    assert best(question, texts, cosines, k) == whole[:k]


@given(PASSAGES.filter(lambda some: len({t for t, _ in some}) == len({c for _, c in some})))
def test_a_text_that_is_nearer_and_has_all_the_words_is_never_behind(
    passages: list[tuple[str, float]],
) -> None:
    passages = sorted(passages, key=lambda one: -one[1])
    texts, cosines = [t for t, _ in passages], [c for _, c in passages]
    order = best("ann 17", texts, cosines, len(texts))
    for one, other in permutations(order, 2):
        has = {w for w in ("ann", "17") if w in texts[other].split()}
        if cosines[one] > cosines[other] and has <= set(texts[one].split()):
            assert order.index(one) < order.index(other)


@given(WORDS.map(" ".join), PASSAGES)
def test_relevance_orders_and_lies_between_the_cosine_and_the_weight_above_it(
    question: str, passages: list[tuple[str, float]]
) -> None:
    passages = sorted(passages, key=lambda one: -one[1])
    texts, cosines = [t for t, _ in passages], [c for _, c in passages]
    found = ranked(question, texts, cosines, len(texts))
    relevances = [one.relevance for one in found]
    assert relevances == sorted(relevances, reverse=True)
    for one in found:
        asked = bool(question) and question.split() == texts[one.index].split()
        least = cosines[one.index] + (0.6 if asked else 0.0)
        assert least - 1e-9 <= one.relevance <= cosines[one.index] + 0.6 + 1e-9
    assert [one.relevance for one in ranked("", texts, cosines, len(texts))] == sorted(
        dict(reversed(passages)).values(), reverse=True
    )


TEXT = st.text(st.sampled_from("aeilnsydt EDSI-_.é9"), max_size=60)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=6))
def test_words_count_as_if_all_of_a_text_were_looked_at(question: str, texts: list[str]) -> None:
    asked, found = words(question), [words(text) for text in texts]
    rare = {
        word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for word in asked
        if (n := sum(word in some for some in found))
    }
    whole = sum(rare.values())
    expected = [sum(rare[w] for w in asked & some) / whole if whole else 0.0 for some in found]
    assert rank._shares(question, texts) == pytest.approx(expected)


def words(text: str) -> set[str]:
    return {rank._stem(word) for word in re.findall(r"\w+", text.lower())}
