"""Time to first token: memory, text in the prompt (RAG) and closed book, side by side.

One process, the same model, passages and questions; embedding, search and load are included. The
modes take turns within each question, so that a disturbance of the machine meets all of them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import get_args

from app import console
from app.answer.service import Mode, Reader, ask
from app.demo import sample
from app.errors import UsageError

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Row:
    """Medians over the questions; times in milliseconds, tokens per question."""

    first_token_ms: float
    search_ms: float
    load_ms: float
    prefill_ms: float
    tokens_processed: float
    memory_tokens: float


def questions_of(file: Path | None) -> list[str]:
    """The questions of a JSONL file, or of the sample handbooks.

    Raises UsageError that names the file when it holds none.
    """
    if file is None:
        return [q.question for q in sample.questions()]
    try:
        lines = file.read_text().splitlines()
        found = [str(json.loads(line)["question"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no JSONL file with a `question` a line: {error}") from None
    if not found:
        raise UsageError(f"{file} holds no questions")
    return found


def run_on_sample(questions: Sequence[str], n: int, k: int, as_json: bool) -> None:
    """Measure on the sample handbooks in a temporary stack and print the table."""
    with sample.temporary_stack(console.complain):
        sample.fill()
        run_on(Reader.of("northwind", sample.BANK, "hana"), questions, n, k, as_json)


def run_on(reader: Reader, questions: Sequence[str], n: int, k: int, as_json: bool) -> None:
    """Measure on a bank and print the table. `questions` are repeated up to `n`."""
    if n < 1:
        raise UsageError(f"-n is {n}: give at least 1")
    rows = measure(reader, [questions[i % len(questions)] for i in range(n)], k)
    if as_json:
        console.print_json(
            {"n": n, "k": k, "modes": {mode: asdict(row) for mode, row in rows.items()}}
        )
    else:
        report(rows, k, n)


def measure(reader: Reader, questions: Sequence[str], k: int) -> dict[Mode, Row]:
    """Ask every question in every mode for one token, after a warm-up question."""
    found: dict[Mode, list[Row]] = {mode: [] for mode in MODES}
    for number, question in enumerate([questions[0], *questions]):
        for mode in MODES:
            answer = ask(reader, question, k=k, mode=mode, max_tokens=1, min_score=-1.0)
            times, usage = answer.timings_ms, answer.usage
            if number:
                found[mode].append(
                    Row(
                        times["first_token"],
                        times["search"],
                        times["load"],
                        times["prefill"],
                        usage["prompt_tokens"],
                        usage["memory_tokens"],
                    )
                )
    return {mode: _medians(rows) for mode, rows in found.items()}


def report(rows: dict[Mode, Row], k: int, questions: int) -> None:
    """Print the table, with each mode's first token against RAG's."""
    base = rows["rag"].first_token_ms
    console.table(
        f"k = {k}, medians of {questions} questions; milliseconds; tokens that the model processes",
        ["mode", "first token", "search", "load", "prefill", "tokens", "in memory", "against RAG"],
        [
            [
                mode,
                row.first_token_ms,
                row.search_ms,
                row.load_ms,
                row.prefill_ms,
                int(row.tokens_processed),
                int(row.memory_tokens),
                f"{base / row.first_token_ms:.1f}x",
            ]
            for mode, row in rows.items()
        ],
    )


def _medians(rows: Sequence[Row]) -> Row:
    columns = zip(*(asdict(row).values() for row in rows), strict=True)
    return Row(*(median(column) for column in columns))
