"""The answers of `membank bench frontier`, kept in a file to which each question adds a line."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.errors import EvaluationError
from app.evaluation import journal
from app.evaluation.metrics import contains, exact, f1


@dataclass(frozen=True)
class Answer:
    """A setting's answer to a question, and the bytes of all its memories, None without any."""

    answer: str
    contains: float
    f1: float
    exact: float
    divergence: float
    bytes: int | None

    @classmethod
    def of(cls, answer: str, right: Sequence[str], divergence: float, size: int | None) -> "Answer":
        scores = contains(answer, right), f1(answer, right), exact(answer, right)
        return cls(answer, *scores, divergence, size)


@dataclass(frozen=True)
class Asked:
    """A question: its chunks' tokens, their bytes as a dense bfloat16 cache, answers by setting."""

    id: str
    tokens: int
    dense_bytes: int
    answers: dict[str, Answer]


class Results:
    """The results for each set's questions, held in memory and in `answers.jsonl`."""

    def __init__(self, file: Path, head: dict[str, Any]) -> None:
        self.file = file
        self.head = head
        self._asked: dict[str, dict[str, Asked]] = defaultdict(dict)

    @classmethod
    def of(cls, folder: Path, head: dict[str, Any]) -> "Results":
        """Open the results in a folder, which is created if necessary.

        `head` holds what all results have in common. Raises EvaluationError when the folder holds
        results with another head, or a file that this benchmark did not write.
        """
        folder.mkdir(parents=True, exist_ok=True)
        results = cls(folder / "answers.jsonl", head)
        try:
            results._read()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{results.file} was not written by this benchmark ({error}): give another --out"
            ) from None
        return results

    def known(self, name: str, question: str) -> set[str]:
        """The settings that have answered a question of the set `name`."""
        asked = self._asked[name].get(question)
        return set(asked.answers) if asked else set()

    def asked(self, name: str, questions: Sequence[str]) -> list[Asked]:
        return [self._asked[name][question] for question in questions]

    def add(self, name: str, asked: Asked) -> None:
        """Add a question's answers. A setting that answered it before keeps its first answer."""
        journal.append(self.file, {"set": name, **asdict(asked)})
        self._merge(name, asked)

    def _merge(self, name: str, asked: Asked) -> None:
        before = self._asked[name].get(asked.id)
        answers = asked.answers | (before.answers if before else {})
        self._asked[name][asked.id] = replace(asked, answers=answers)

    def _read(self) -> None:
        for row in journal.begin(self.file, self.head):
            answers = {name: Answer(**answer) for name, answer in row["answers"].items()}
            self._merge(row["set"], Asked(row["id"], row["tokens"], row["dense_bytes"], answers))
