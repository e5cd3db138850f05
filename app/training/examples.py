"""Turns rows into training examples: memories as a search would return them, and what to answer.

Distractors are the best wrong pieces of a real search over all training passages, and memories
stand in order of relevance, as they do when a question is asked. Some examples are plain text
beside unrelated memories. Everything is drawn from the seed and the position alone, so that a
resumed run draws the same examples.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from app.evaluation.abstention import ABSTENTION
from app.evaluation.corpus import Corpus
from app.evaluation.metrics import contains
from app.search.rank import POOL, best
from app.training.data import Row

KS = (1, 2, 3, 4, 5, 6, 7, 8)
WEIGHTS = (25, 15, 15, 10, 15, 5, 5, 10)
"""Relative frequency of each number of memories in KS."""
UNANSWERED = 0.05
"""Share of questions shown without the passages that answer them."""
PLAIN = 0.125
"""Share of examples that are plain text."""
PLAIN_TOKENS = 32
_SPREAD = 4
"""For half of the examples, distractors are drawn from a pool with this many more than needed."""


@dataclass(frozen=True)
class Example:
    """A question, the texts of its memories (best first), their relevances, and the answer.

    Without a question, `answer` is plain text to continue as if there were no memories.
    """

    question: str | None
    texts: tuple[str, ...]
    relevances: tuple[float, ...]
    answer: str


@dataclass(frozen=True)
class _Candidates:
    """A row's pieces with their relevance, best first: those with the answer, and the others."""

    gold: list[tuple[int, float]]
    others: list[tuple[int, float]]


class Examples:
    """Training examples made from rows and what a search over the corpus returns for each."""

    def __init__(self, corpus: Corpus, rows: Sequence[Row], questions: Tensor, seed: int) -> None:
        """`questions` holds the vector of each row's question, of shape (rows, dimensions)."""
        self._corpus, self._rows, self._seed = corpus, rows, seed
        self._questions, self._candidates = questions, dict[int, _Candidates]()

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, position: int) -> Example:
        """The example at a position: a question or, for a share of PLAIN, plain text."""
        if self._chance("plain", position).random() < PLAIN:
            return self.plain(position)
        return self.asked(position)

    def asked(self, position: int) -> Example:
        """The question at a position in the endless sequence of shuffled epochs."""
        epoch, place = divmod(position, len(self))
        order = list(range(len(self)))
        self._chance("epoch", epoch).shuffle(order)
        return self.of(order[place], epoch)

    def plain(self, place: int) -> Example:
        """Plain text beside pieces of other passages, drawn for this position."""
        chance, pieces = self._chance("text", place), self._corpus.pieces
        text, *others = chance.sample(range(len(pieces)), 1 + chance.choices(KS, WEIGHTS)[0])
        others = [one for one in others if pieces[one].passage != pieces[text].passage]
        scores = (self._corpus.vectors[others] @ self._corpus.vectors[text]).tolist()
        some = sorted(zip(others, scores, strict=True), key=lambda one: -one[1])
        return self._shown(None, some, pieces[text].text)

    def of(self, index: int, epoch: int, k: int | None = None) -> Example:
        """A row with the memories drawn for it in an epoch: `k`, or a random number of them."""
        row, found = self._rows[index], self._found(index)
        chance = self._chance("row", epoch, index)
        drawn = chance.choices(KS, WEIGHTS)[0]
        k = k or max(drawn, len(found.gold))
        if not found.gold or chance.random() < UNANSWERED:
            answer, gold = ABSTENTION, []
            others = [one for one in found.others if not self._answers(one[0], row)]
        else:
            answer, gold, others = row.answers[0], found.gold, found.others
        wrong = others[: max(0, k - len(gold)) + chance.choice((0, _SPREAD))]
        some = [*gold, *chance.sample(wrong, min(len(wrong), max(0, k - len(gold))))]
        some.sort(key=lambda one: -one[1])
        return self._shown(row.question, some, answer)

    def _chance(self, *what: object) -> random.Random:
        return random.Random(":".join(map(str, (self._seed, *what))))  # noqa: S311 (no secret)

    def _shown(
        self, question: str | None, some: Sequence[tuple[int, float]], answer: str
    ) -> Example:
        texts = tuple(self._corpus.pieces[piece].text for piece, _ in some)
        return Example(question, texts, tuple(relevance for _, relevance in some), answer)

    def _answers(self, piece: int, row: Row) -> bool:
        found = self._corpus.pieces[piece]
        return found.passage in row.gold or bool(row.answers and contains(found.text, row.answers))

    def _found(self, index: int) -> _Candidates:
        if index not in self._candidates:
            self._candidates[index] = self._searched(self._rows[index], self._questions[index])
        return self._candidates[index]

    def _searched(self, row: Row, vector: Tensor) -> _Candidates:
        """What a search returns, plus the pieces with the answer even if it misses them."""
        corpus = self._corpus
        gold = corpus.gold(row.gold, row.answers, row.question) if row.answers else []
        hits = corpus.search(vector[None], POOL)
        cosines = dict(zip(hits.pieces[0], hits.scores[0], strict=True))
        cosines |= zip(gold, (corpus.vectors[gold] @ vector).tolist(), strict=True)
        pool = sorted(cosines, key=lambda piece: -cosines[piece])
        texts = [corpus.pieces[piece].text for piece in pool]
        ranked = best(row.question, texts, [cosines[piece] for piece in pool], len(pool))
        relevance = {texts[one.index]: one.relevance for one in ranked}
        found = [(pool[one.index], one.relevance) for one in ranked]
        read = {corpus.pieces[piece].text for piece in gold}
        return _Candidates(
            [(piece, relevance[corpus.pieces[piece].text]) for piece in gold],
            [one for one in found if corpus.pieces[one[0]].text not in read],
        )
