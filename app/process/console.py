"""What users see in the terminal: tables, progress bars, and errors as one plain line."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Wide enough that no table is truncated in a file or a pipe.
_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 500
out = Console(highlight=False, soft_wrap=True, width=_width)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def quiet() -> None:
    """Keep library warnings out of a command's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def say(text: str) -> None:
    """Print a line on stdout verbatim: document text is never read as markup."""
    out.print(text, markup=False)


def complain(text: str) -> None:
    """Print one line on stderr."""
    err.print(" ".join(text.split()), markup=False)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout and nothing else."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def table(title: str, head: list[str], rows: list[list[object]]) -> None:
    """Print a table on stdout; columns of numbers are right-aligned."""
    shown = Table(title=title, title_justify="left")
    for index, name in enumerate(head):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        shown.add_column(name, justify="right" if rows and numeric else "left")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    out.print(shown, markup=False)


def progress() -> Progress:
    """A progress bar on stderr, with a count and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=err,
        transient=False,
    )


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
