"""The answers of `membank eval`, kept in a file that grows by a line an answer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.errors import EvaluationError
from app.evaluation import journal
from app.runtime.models import Mode


@dataclass(frozen=True)
class Answered:
    """One answer. `recall`: share of the gold passages that were found; None where none is."""

    mode: Mode
    k: int
    id: str
    answer: str
    contains: float
    f1: float
    exact: float
    recall: float | None
    abstained: bool
    answerable: bool


class Results:
    """What is known already, in memory and in `answers.jsonl`."""

    def __init__(self, file: Path | None, head: dict[str, Any]) -> None:
        """The results in a file, made if need be; None keeps them in memory alone.

        `head`: what all results have in common, by name of the mode.
        Raises EvaluationError for a file with another head, or one that is none of ours.
        """
        self._file, self._head = file, head
        self._known: dict[tuple[str, int, str], Answered] = {}
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._read(file)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{file} is not of this evaluation ({error}): give another --out"
            ) from None

    def get(self, mode: str, k: int, question: str) -> Answered | None:
        return self._known.get((mode, k, question))

    def add(self, answered: Answered) -> None:
        self._known[answered.mode, answered.k, answered.id] = answered
        if self._file is not None:
            journal.append(self._file, asdict(answered))

    def _read(self, file: Path) -> None:
        for row in journal.begin(file, self._head):
            found = Answered(**row)
            self._known[found.mode, found.k, found.id] = found
