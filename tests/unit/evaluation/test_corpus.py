"""Passages in pieces, their vectors kept on disk, and the search among them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.evaluation.corpus import Corpus, Piece, Vectors, pieces_of
from app.evaluation.questions import Passage


class Counting:
    """Vectors by length of the text; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.asked += len(texts)
        return torch.nn.functional.normalize(
            torch.tensor([[1.0, float(len(text))] for text in texts]), dim=1
        )


def corpus() -> Corpus:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    pieces = [Piece("a", "Oil fell"), Piece("a", "in 1973"), Piece("b", "gas"), Piece("c", "coal")]
    return Corpus(pieces, vectors)


def test_the_nearest_come_first_and_equals_in_order() -> None:
    hits = corpus().search(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 3)
    assert hits.pieces == [[3, 1, 2], [0, 1, 2]]
    assert hits.scores[0] == pytest.approx([1.0, 0.8, 0.8])


def test_a_search_among_some_finds_no_other() -> None:
    hits = corpus().search(torch.tensor([[0.0, 1.0]]), 3, [[0, 2]])
    assert hits.pieces == [[2, 0]]


def test_questions_are_searched_in_the_order_of_the_product() -> None:
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    hits = corpus().best(["When was it? In 1973", ""], vectors, 2)
    assert hits.pieces == [[1, 3], [0, 1]]
    assert hits.scores[0] == pytest.approx([0.8 + 0.6, 1.0])
    assert corpus().best(["gas"], vectors[:1], 1, [[0, 2]]).pieces == [[2]]


def test_more_than_there_is_gives_what_there_is() -> None:
    assert len(corpus().search(torch.tensor([[0.0, 1.0]]), 9).pieces[0]) == 4


def test_the_gold_piece_is_the_one_that_holds_the_answer() -> None:
    assert corpus().gold(["a"], ["1973"], "When did oil fall?") == [1]
    assert corpus().gold(["a", "b"], ["never"], "When did oil fell?") == [0, 2]
    assert corpus().gold(["unknown"], ["1973"], "When?") == []


def test_vectors_are_made_once_and_read_again(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(1100)]
    first = Counting()
    made = Vectors(first, "name", tmp_path).of(texts)
    again = Counting()
    seen: list[int] = []
    assert torch.equal(Vectors(again, "name", tmp_path).of(texts, seen.append), made)
    assert (first.asked, again.asked, sum(seen)) == (1100, 0, 1100)
    other = Counting()
    Vectors(other, "another embedder", tmp_path).of(texts)
    assert other.asked == 1100


def test_damaged_vectors_are_made_again(tmp_path: Path) -> None:
    made = Vectors(Counting(), "name", tmp_path).of(["a", "bb"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(Vectors(Counting(), "name", tmp_path).of(["a", "bb"]), made)


def test_a_passage_is_split_once() -> None:
    passages = [Passage("p", "T", "one"), Passage("q", "T", "two"), Passage("p", "T", "one")]
    assert [piece.passage for piece in pieces_of(passages, len)] == ["p", "q"]
