"""Reads question files line by line into checked rows, split into training and validation."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import EvaluationError, TrainingError
from app.evaluation.questions import Passage, Question, read_leniently

_LEAST_ROWS = 8
_MOST_WARNINGS = 20
_LONGEST_ANSWER = 64
VALID_SHARE = 0.05

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Row:
    """A question. `gold` names the passages that answer it; without any, `answers` is empty."""

    id: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """Rows and passages of all files. `digest` is the SHA-256 of the files' bytes, in hex."""

    train: list[Row]
    valid: list[Row]
    passages: dict[str, Passage]
    warnings: list[str]
    digest: str


def read(files: Sequence[Path], count: CountTokens, longest_question: int, seed: int) -> Data:
    """Read the rows of question files. `count` returns the number of tokens in a text.

    A row that cannot be trained on is left out, with a warning that names file and line: invalid
    JSON, an empty question or answer, an answer without a passage, a question of more than
    `longest_question` tokens, or an answer of more than 64. Rows are split as their `split` says;
    in a file with no row marked `valid`, 5 % of the rows, drawn by id and `seed`, are kept for
    validation. Raises EvaluationError for a file that cannot be read, TrainingError for fewer
    than 8 rows to train on or none to validate with.
    """
    warnings = _Warnings()
    train: list[Row] = []
    valid: list[Row] = []
    passages: dict[str, Passage] = {}
    digest = hashlib.sha256()
    for file in files:
        rows: list[tuple[Row, str | None]] = []
        for number, found in read_leniently(file):
            reason = _unfit(found, count, longest_question)
            if reason or isinstance(found, EvaluationError):
                warnings.add(reason or str(found), f"{file}:{number}")
                continue
            answers = tuple(a.strip() for a in found.answers if a.strip())
            rows.append((Row(found.id, found.question, answers, found.gold), found.split))
            passages.update((p.id, p) for p in found.passages if p.text.strip())
        if not any(split == "valid" for _, split in rows):
            warnings.say(
                f"{file} has no rows with split `valid`: {VALID_SHARE:.0%} are drawn for validation"
            )
            rows = [(row, _drawn(row, seed)) for row, _ in rows]
        valid += [row for row, split in rows if split == "valid"]
        train += [row for row, split in rows if split != "valid"]
        for block in _blocks(file):
            digest.update(block)
    if len(train) < _LEAST_ROWS or not valid:
        raise TrainingError(
            f"{', '.join(map(str, files))}: {len(train)} rows to train on and {len(valid)} to"
            f" validate with; at least {_LEAST_ROWS} and 1 are needed"
        )
    return Data(train, valid, passages, warnings.lines(), digest.hexdigest())


def _unfit(
    found: Question | EvaluationError, count: CountTokens, longest_question: int
) -> str | None:
    if isinstance(found, EvaluationError):
        return None
    answers = [answer.strip() for answer in found.answers]
    if not found.question.strip():
        return "the question is empty"
    if found.answerable and not any(answers):
        return "the answer is empty, and the row does not say `answerable: false`"
    if found.answerable and not found.gold:
        return "no passage is marked as holding the answer (`gold`)"
    if count(found.question) > longest_question:
        return f"the question has more than {longest_question} tokens"
    if answers and count(next(filter(None, answers), "")) > _LONGEST_ANSWER:
        return f"the answer has more than {_LONGEST_ANSWER} tokens"
    return None


def _drawn(row: Row, seed: int) -> str:
    number = int.from_bytes(hashlib.sha256(f"{seed}:{row.id}".encode()).digest()[:4], "big")
    return "valid" if number < VALID_SHARE * 2**32 else "train"


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            yield block


class _Warnings:
    """Collects warnings; the first few rows left out are listed, the rest are counted."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._left_out: list[str] = []

    def say(self, line: str) -> None:
        self._said.append(line)

    def add(self, reason: str, where: str) -> None:
        self._left_out.append(reason if reason.startswith(where) else f"{where}: {reason}")

    def lines(self) -> list[str]:
        shown = [f"left out: {line}" for line in self._left_out[:_MOST_WARNINGS]]
        if more := len(self._left_out) - len(shown):
            shown.append(f"left out: {more} more rows")
        return [*self._said, *shown]
