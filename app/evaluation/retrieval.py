"""What a search brings for each question of a file, from a whole corpus or its own passages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import EvaluationError
from app.evaluation.corpus import Corpus, Vectors, pieces_of
from app.evaluation.questions import Passage, Question, read_passages
from app.ingest.split import CountTokens


@dataclass(frozen=True)
class Retrieved:
    """Texts of the pieces for one question, best first, with relevance and passage of each."""

    texts: tuple[str, ...]
    relevances: tuple[float, ...]
    passages: tuple[str, ...]


class Retrieval:
    """Questions and what was found for them, and how to look up more."""

    def __init__(self, corpus: Corpus, alike: dict[str, str], found: dict[str, Retrieved]) -> None:
        self._corpus, self._alike, self._found = corpus, alike, found

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        corpus: Sequence[Passage],
        alike: dict[str, str],
        vectors: Vectors,
        count: CountTokens,
        k: int,
        own: bool,
        bar: Callable[[int, int], None],
    ) -> "Retrieval":
        """The k best pieces of each question, in the order of a bank's search.

        corpus: passages beside the questions' own; alike: a name for each group of passages that
        are the same but for a word; own: search a question's own passages only; bar: told how many
        texts of how many are embedded.
        """
        together = [*corpus, *(p for question in questions for p in question.passages)]
        pieces = pieces_of(together, count)
        total, done = len(pieces) + len(questions), 0

        def seen(n: int) -> None:
            nonlocal done
            done += n
            bar(done, total)

        searched = Corpus(pieces, vectors.of([piece.text for piece in pieces], seen))
        asked = vectors.of([question.question for question in questions], seen)
        among = None
        if own:
            among = [
                [piece for passage in question.passages for piece in searched.of(passage.id)]
                for question in questions
            ]
        hits = searched.best([question.question for question in questions], asked, k, among)
        retrieved = {
            question.id: Retrieved(
                tuple(pieces[i].text for i in nearest),
                tuple(relevances),
                tuple(pieces[i].passage for i in nearest),
            )
            for question, nearest, relevances in zip(
                questions, hits.pieces, hits.scores, strict=True
            )
        }
        return cls(searched, alike, retrieved)

    def __getitem__(self, question: str) -> Retrieved:
        return self._found[question]

    def recall(self, question: Question, k: int) -> float | None:
        """Share of the gold passages of which a piece is among the k nearest; None without any."""
        if not question.gold:
            return None
        found = {self._name(passage) for passage in self._found[question.id].passages[:k]}
        return sum(self._name(passage) in found for passage in question.gold) / len(question.gold)

    def _name(self, passage: str) -> str:
        return self._alike.get(passage, passage)


def read_corpus(file: Path | None) -> tuple[list[Passage], dict[str, str]]:
    """The passages of a file, and the groups of FILE_dups.json beside it, if that is there.

    Raises EvaluationError when one of them cannot be read.
    """
    if file is None:
        return [], {}
    groups = file.with_name(file.name.split(".")[0] + "_dups.json")
    if not groups.exists():
        return list(read_passages(file)), {}
    try:
        found = json.loads(groups.read_text())
        alike = {passage: group[0] for group in found for passage in group}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{groups} holds no list of lists of passage ids ({error})") from None
    return list(read_passages(file)), alike
