"""Question files: rows with a question, its right answers, passages, and which of them hold it."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.errors import EvaluationError

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Passage:
    """A text that a question may be answered from."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A row. `answers` are equally right wordings, none when the passages do not hold one."""

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    gold: tuple[str, ...]
    answerable: bool
    split: str | None = None
    """train or valid, in a training file that says so."""

    @property
    def gold_passages(self) -> list[Passage]:
        """The passages that hold the answer, in the order of the row."""
        return [passage for passage in self.passages if passage.id in self.gold]


def read(file: Path) -> Iterator[Question]:
    """The questions of a .jsonl or .jsonl.gz file, one at a time.

    Raises EvaluationError that names the file, and the line where it is one, when the file cannot
    be read or a row is no question.
    """
    for _, line, where in _lines(file):
        yield _question(line, where)


def read_leniently(file: Path) -> Iterator[tuple[int, "Question | EvaluationError"]]:
    """The same with each row's line number, and what is wrong with a row in its place.

    Raises EvaluationError when the file itself cannot be read.
    """
    for number, line, where in _lines(file):
        try:
            yield number, _question(line, where)
        except EvaluationError as error:
            yield number, error


def read_passages(file: Path) -> Iterator[Passage]:
    """The passages of a .jsonl or .jsonl.gz file of {"id", "title", "text"} a line.

    Raises EvaluationError as `read` does.
    """
    for _, line, where in _lines(file):
        yield _passage(_object(line, where), where)


def _lines(file: Path) -> Iterator[tuple[int, bytes, str]]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line, f"{file}:{number}"
    except (OSError, EOFError) as error:
        where = f"{file}, after line {number}" if number else f"{file}"
        raise EvaluationError(f"{where} cannot be read: {error}") from error


def sample(questions: Iterable[Question], n: int, seed: int = 0) -> list[Question]:
    """`n` questions drawn by id and seed alone, whatever order they come in.

    A larger sample of the same seed begins with the smaller one. All of them, shuffled, where
    there are fewer than `n`.
    """

    def drawn(question: Question) -> bytes:
        return hashlib.sha256(f"{seed}:{question.id}".encode()).digest()

    return sorted(questions, key=drawn)[:n]


def _question(line: bytes, where: str) -> Question:
    row = _object(line, where)
    answers = _texts(row, "answers", where)
    passages = tuple(_passage(one, where) for one in _field(row, "passages", list, where))
    gold = _texts(row, "gold", where)
    if missing := set(gold) - {passage.id for passage in passages}:
        raise EvaluationError(f"{where}: gold passage {min(missing)} is not among `passages`")
    split = row.get("split")
    return Question(
        id=_field(row, "id", str, where),
        question=_field(row, "question", str, where),
        answers=answers,
        passages=passages,
        gold=gold,
        answerable=bool(row.get("answerable", answers)),
        split=split if isinstance(split, str) else None,
    )


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{where} is not JSON ({error}): give one object a line") from None
    if not isinstance(row, dict):
        raise EvaluationError(f"{where} is no JSON object: give one object a line")
    return row


def _passage(row: Any, where: str) -> Passage:
    return Passage(*(_field(row, name, str, where) for name in ("id", "title", "text")))


def _texts(row: Any, name: str, where: str) -> tuple[str, ...]:
    values = _field(row, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise EvaluationError(f"{where}: `{name}` is to hold texts only")
    return tuple(values)


def _field(row: Any, name: str, kind: type[_Kind], where: str) -> _Kind:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise EvaluationError(f"{where}: `{name}` is missing or no {_NAMES[kind]}")
    return value


_NAMES: dict[type, str] = {str: "text", list: "list"}
