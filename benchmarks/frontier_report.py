"""The table and the plot of `membank bench frontier`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.evaluation.metrics import Interval, difference, interval
from app.evaluation.plot import Point, plot
from app.process import console
from benchmarks.frontier_results import Asked

_CHUNK = 128
_HEAD = ["memory", "bytes a chunk", "ratio", "KL", "contains", "F1", "F1 - dense"]


@dataclass(frozen=True)
class Row:
    """One setting's means on one set of questions, with 95 % intervals.

    `bytes` is the size of a chunk of 128 tokens, including overhead; `ratio` is that of dense
    bfloat16 divided by it; both are None where nothing is stored. `divergence` is in nats per
    token; the other metrics are 0 to 1.
    """

    name: str
    bytes: float | None
    ratio: float | None
    divergence: Interval
    contains: Interval
    f1: Interval
    exact: Interval
    f1_difference: Interval
    contains_difference: Interval

    @classmethod
    def of(cls, name: str, asked: Sequence[Asked], base: str) -> "Row":
        answers = [question.answers[name] for question in asked]
        dense = [question.answers[base] for question in asked]
        stored = sum(answer.bytes or 0 for answer in answers)
        tokens = sum(question.tokens for question in asked)
        f1, contains = [a.f1 for a in answers], [a.contains for a in answers]
        return cls(
            name,
            _CHUNK * stored / tokens if stored else None,
            sum(question.dense_bytes for question in asked) / stored if stored else None,
            interval([a.divergence for a in answers]),
            interval(contains),
            interval(f1),
            interval([a.exact for a in answers]),
            difference(f1, [a.f1 for a in dense]),
            difference(contains, [a.contains for a in dense]),
        )

    def cells(self) -> list[str]:
        """The row as text, with quality in points out of 100."""
        return [
            self.name,
            "" if self.bytes is None else f"{self.bytes:,.0f}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.divergence.mean:.4f}",
            self.contains.points(),
            self.f1.points(),
            self.f1_difference.points("+"),
        ]


@dataclass(frozen=True)
class Report:
    """The rows of each set of questions, and its number of questions."""

    rows: dict[str, list[Row]]
    n: dict[str, int]

    @classmethod
    def of(cls, asked: Mapping[str, Sequence[Asked]], names: Sequence[str], base: str) -> "Report":
        """`names` are settings in the table's order; differences are from the setting `base`."""
        return cls(
            {set_: [Row.of(name, found, base) for name in names] for set_, found in asked.items()},
            {set_: len(found) for set_, found in asked.items()},
        )

    def json(self, head: dict[str, Any]) -> dict[str, Any]:
        sets = {
            name: {"n": self.n[name], "rows": [asdict(row) for row in rows]}
            for name, rows in self.rows.items()
        }
        return {**head, "chunk_tokens": _CHUNK, "sets": sets}

    def show(self) -> None:
        for name, rows in self.rows.items():
            console.table(self._title(name), _HEAD, [[*row.cells()] for row in rows])

    def write(self, folder: Path, head: dict[str, Any]) -> None:
        """Write frontier.md, frontier.json and frontier.svg."""
        tables = [
            f"## {self._title(name)}\n\n{_markdown(rows)}" for name, rows in self.rows.items()
        ]
        (folder / "frontier.md").write_text("\n".join(tables))
        (folder / "frontier.json").write_text(json.dumps(self.json(head), indent=1) + "\n")
        points = {
            name: [
                Point(row.bytes, 100 * d.mean, 100 * d.low, 100 * d.high, row.name)
                for row in rows
                if row.bytes is not None
                for d in [row.f1_difference]
            ]
            for name, rows in self.rows.items()
        }
        levels = {
            f"{row.name}, {name}": 100 * row.f1_difference.mean
            for name, rows in self.rows.items()
            for row in rows
            if row.bytes is None
        }
        (folder / "frontier.svg").write_text(
            plot(points, levels, "bytes of a 128-token chunk", "F1 - dense, points")
        )

    def _title(self, name: str) -> str:
        return (
            f"{name}: {self.n[name]} questions, quality in points with 95 % intervals, KL to dense"
            " in nats a token"
        )


def _markdown(rows: Sequence[Row]) -> str:
    lines = [_HEAD, ["---", *["---:"] * (len(_HEAD) - 1)], *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
