"""What a benchmark printed, as tables; docs/measured.md and its chart from the results."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured_chart import Bars, chart

_SECTION = re.compile(r"(<!-- measured: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MODES = {
    "memory": "memory",
    "rag": "text, our decoder",
    "transformers rag": "text, transformers",
    "llama.cpp rag": "text, llama.cpp",
}


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Result:
    """One subject's command, where and when it ran, and what it said. `seconds`: of the run."""

    subject: str
    command: str
    machine: str
    version: str
    date: str
    seconds: int
    tables: list[Table]
    notes: list[str]

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Result":
        return cls(**value | {"tables": [Table(**table) for table in value["tables"]]})


def tables(text: str) -> tuple[list[Table], list[str]]:
    """The tables that a command printed, each with the lines above it, and all other lines."""
    found: list[Table] = []
    notes: list[str] = []
    for line in text.splitlines():
        if line.startswith("┃"):
            found.append(Table(" ".join(notes), _cells(line, "┃"), []))
            notes.clear()
        elif line.startswith("│"):
            found[-1].rows.append(_cells(line, "│"))
        elif line.strip() and line[0] not in "┏┡└":
            notes.append(line.strip())
    return found, notes


def _cells(line: str, border: str) -> list[str]:
    return [cell.strip() for cell in line.strip(border + " ").split(border)]


def render(results: Path, docs: Path) -> None:
    """Write the sections of docs/measured.md and docs/measured.svg that there are results for."""
    known = {
        file.stem: Result.of(json.loads(file.read_text()))
        for file in sorted(results.glob("*.json"))
    }

    def section(found: re.Match[str]) -> str:
        result = known.get(found[2])
        return found[0] if result is None else f"{found[1]}\n{markdown(result)}\n{found[3]}"

    page = docs / "measured.md"
    page.write_text(_SECTION.sub(section, page.read_text()))
    if "first-token" in known and "quality-squad" in known:
        drawn = chart(
            [first_token(known["first-token"]), quality(known["quality-squad"])],
            [_origin(known[name]) for name in ("first-token", "quality-squad")],
        )
        (docs / "measured.svg").write_text(drawn)


def markdown(result: Result) -> str:
    """The section of a result."""
    took = f", {result.seconds} s" if result.seconds else ""
    parts = [f"`{result.command}`\n\n{result.machine}; {result.version}; {result.date}{took}.\n"]
    for table in result.tables:
        lines = [table.head, ["---"] * len(table.head), *table.rows]
        rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"{table.title[:1].upper()}{table.title[1:]}:\n\n{rows}")
    if result.notes:
        parts.append("".join(f"- {note}\n" for note in result.notes))
    return "\n".join(parts)


def first_token(result: Result) -> Bars:
    """Milliseconds by number of passages, for memory and each way to read the same as text."""
    [table] = result.tables
    k, mode, first = (table.head.index(name) for name in ("k", "mode", "first"))
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in table.rows:
        if name := _MODES.get(row[mode]):
            value = float(row[first].replace(",", ""))
            series.setdefault(name, []).append((value, value, value))
    groups = list(dict.fromkeys(f"k = {row[k]}" for row in table.rows))
    return Bars("First token, milliseconds (log scale)", groups, series, log=True)


def quality(result: Result) -> Bars:
    """F1 with its interval by number of passages, from memory and from the text."""
    table = result.tables[0]
    k, mode, f1 = (table.head.index(name) for name in ("k", "mode", "F1"))
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in table.rows:
        if row[mode] in ("memory", "rag"):
            mean, low, high = map(float, re.findall(r"-?\d+(?:\.\d+)?", row[f1]))
            name = _MODES[row[mode]]
            series.setdefault(name, []).append((mean, low, high))
    groups = list(dict.fromkeys(f"k = {row[k]}" for row in table.rows if row[k]))
    return Bars("F1 of answers, points, with 95 % intervals", groups, series)


def _origin(result: Result) -> str:
    return f"{result.command}: {result.machine}; {result.version}, {result.date}"
