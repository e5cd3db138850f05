"""A file of results that grows by a line of JSON, behind a head that all of them share."""

import json
from pathlib import Path
from typing import Any


def begin(file: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file, which gets the head if it is new.

    Raises ValueError for another head, or a line that is not JSON.
    """
    text = file.read_text() if file.exists() else ""
    whole, _, torn = text.rpartition("\n")
    if torn:  # a run was killed while it wrote its last line
        file.write_text(whole + "\n" if whole else "")
    found, *rows = [json.loads(line) for line in whole.splitlines()] or [None]
    if found is None:
        file.write_text(json.dumps(head) + "\n")
    elif found != head:
        differs = [key for key in head if found.get(key) != head[key]]
        raise ValueError(f"its {' and '.join(differs) or 'head'} differ")
    return rows


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    with file.open("a") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
