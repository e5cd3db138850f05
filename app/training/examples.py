"""A row -> what the reader is shown: memories as a search would bring them, and what to say.

Distractors are the nearest wrong pieces of a real search over all training passages, and memories
stand in the order of their score, as they do when a question is asked. Some places are taken by
plain text beside memories that have nothing to do with it. All is drawn by seed and place alone, so
that a run that is resumed draws the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from app.evaluation.abstention import ABSTENTION
from app.evaluation.corpus import Corpus
from app.evaluation.metrics import contains
from app.training.data import Row

KS = (1, 2, 3, 4, 5, 6, 7, 8)
WEIGHTS = (25, 15, 15, 10, 15, 5, 5, 10)
"""How often a question comes with so many memories."""
UNANSWERED = 0.05
"""Share of the questions whose right passages are taken away."""
PLAIN = 0.125
"""Share of the places that hold plain text."""
PLAIN_TOKENS = 32
_NEAR = 24
_SPREAD = 4
"""Distractors are drawn from so many more of the nearest than are needed."""


@dataclass(frozen=True)
class Example:
    """Texts of the memories, best first, the cosine of each with the question, and the answer.

    Without a question, `answer` is plain text to go on with as if there were no memories.
    """

    question: str | None
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    answer: str


@dataclass(frozen=True)
class _Candidates:
    """A row's pieces, best first, with their scores: those to read, and the nearest others."""

    gold: list[tuple[int, float]]
    near: list[tuple[int, float]]


class Examples:
    """Rows with what a search over the corpus brings for them."""

    def __init__(self, corpus: Corpus, rows: Sequence[Row], questions: Tensor, seed: int) -> None:
        """`questions`: a vector for each row, (rows, dimensions)."""
        self._corpus, self._rows, self._seed = corpus, rows, seed
        hits = corpus.search(questions, _NEAR)
        self._candidates = [
            self._found(row, vector, list(zip(pieces, scores, strict=True)))
            for row, vector, pieces, scores in zip(
                rows, questions, hits.pieces, hits.scores, strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, position: int) -> Example:
        """The example at a place: the question there, or plain text instead of it."""
        if self._chance("plain", position).random() < PLAIN:
            return self.plain(position)
        return self.asked(position)

    def asked(self, position: int) -> Example:
        """The question at a place of the endless sequence of shuffled epochs."""
        epoch, place = divmod(position, len(self))
        order = list(range(len(self)))
        self._chance("epoch", epoch).shuffle(order)
        return self.of(order[place], epoch)

    def plain(self, place: int) -> Example:
        """Plain text beside the pieces drawn for a place, which are of other passages."""
        chance, pieces = self._chance("text", place), self._corpus.pieces
        text, *others = chance.sample(range(len(pieces)), 1 + chance.choices(KS, WEIGHTS)[0])
        others = [one for one in others if pieces[one].passage != pieces[text].passage]
        scores = (self._corpus.vectors[others] @ self._corpus.vectors[text]).tolist()
        some = sorted(zip(others, scores, strict=True), key=lambda one: -one[1])
        return self._shown(None, some, pieces[text].text)

    def of(self, index: int, epoch: int, k: int | None = None) -> Example:
        """A row with the memories drawn for it in an epoch; `k` of them, or as drawn."""
        row, found = self._rows[index], self._candidates[index]
        chance = self._chance("row", epoch, index)
        drawn = chance.choices(KS, WEIGHTS)[0]
        k = k or max(drawn, len(found.gold))
        if not found.gold or chance.random() < UNANSWERED:
            answer, gold = ABSTENTION, []
            near = [one for one in found.near if not self._answers(one[0], row)]
        else:
            answer, gold, near = row.answers[0], found.gold, found.near
        wrong = near[: max(0, k - len(gold)) + chance.choice((0, _SPREAD))]
        some = [*gold, *chance.sample(wrong, min(len(wrong), max(0, k - len(gold))))]
        some.sort(key=lambda one: -one[1])
        return self._shown(row.question, some, answer)

    def _chance(self, *what: object) -> random.Random:
        return random.Random(":".join(map(str, (self._seed, *what))))  # noqa: S311 (no secret)

    def _shown(
        self, question: str | None, some: Sequence[tuple[int, float]], answer: str
    ) -> Example:
        texts = tuple(self._corpus.pieces[piece].text for piece, _ in some)
        return Example(question, texts, tuple(score for _, score in some), answer)

    def _answers(self, piece: int, row: Row) -> bool:
        found = self._corpus.pieces[piece]
        return found.passage in row.gold or bool(row.answers and contains(found.text, row.answers))

    def _found(self, row: Row, vector: Tensor, hits: list[tuple[int, float]]) -> _Candidates:
        gold = self._corpus.gold(row.gold, row.answers, row.question) if row.answers else []
        scores = (self._corpus.vectors[gold] @ vector).tolist()
        near = [(piece, score) for piece, score in hits if piece not in gold]
        return _Candidates(list(zip(gold, scores, strict=True)), near)
