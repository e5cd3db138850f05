"""The answers of `membank bench frontier`, kept in a file that grows by a line a question."""

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
    """One setting's answer to one question; bytes of all its memories, None where it has none."""

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
    """A question: tokens of its chunks, bytes of their dense bfloat16 cache, answers by setting."""

    id: str
    tokens: int
    dense_bytes: int
    answers: dict[str, Answer]


class Results:
    """What is known of each set's questions, in memory and in `answers.jsonl`."""

    def __init__(self, file: Path, head: dict[str, Any]) -> None:
        self.file = file
        self.head = head
        self._asked: dict[str, dict[str, Asked]] = defaultdict(dict)

    @classmethod
    def of(cls, folder: Path, head: dict[str, Any]) -> "Results":
        """The results in a folder, made if need be. `head`: what all of them have in common.

        Raises EvaluationError when the folder holds results with another head, or a file that is
        none of ours.
        """
        folder.mkdir(parents=True, exist_ok=True)
        results = cls(folder / "answers.jsonl", head)
        try:
            results._read()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{results.file} is not of this benchmark ({error}): give another --out"
            ) from None
        return results

    def known(self, name: str, question: str) -> set[str]:
        """Settings that answered a question of the set `name`."""
        asked = self._asked[name].get(question)
        return set(asked.answers) if asked else set()

    def asked(self, name: str, questions: Sequence[str]) -> list[Asked]:
        return [self._asked[name][question] for question in questions]

    def add(self, name: str, asked: Asked) -> None:
        """Keep a question's answers. Of a setting that answered it before, the first stays."""
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
