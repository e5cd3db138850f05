"""Answers -> means with intervals, paired differences, a table and a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.evaluation.metrics import Interval, difference, interval
from app.evaluation.plot import Point, plot
from app.evaluation.results import Answered
from app.process import console
from app.runtime.models import Mode

_HEAD = ["mode", "k", "F1", "contains", "exact", "recall", "asserted wrongly", "abstained wrongly"]


@dataclass(frozen=True)
class Score:
    """One mode at one k. All are 0 to 1, over answerable questions where not said otherwise.

    recall: mean share of gold passages found; asserted_wrongly: share of the unanswerable questions
    that were answered; abstained_wrongly: share of the answerable ones that were not.
    """

    mode: Mode
    k: int
    f1: Interval | None
    contains: Interval | None
    exact: Interval | None
    recall: Interval | None
    asserted_wrongly: Interval | None
    abstained_wrongly: Interval | None

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "Score":
        """Of one mode and k, at least one answer."""
        asked = [a for a in answers if a.answerable]
        nothing = [a for a in answers if not a.answerable]
        return cls(
            answers[0].mode,
            answers[0].k,
            _mean([a.f1 for a in asked]),
            _mean([a.contains for a in asked]),
            _mean([a.exact for a in asked]),
            _mean([a.recall for a in asked if a.recall is not None]),
            _mean([float(not a.abstained) for a in nothing]),
            _mean([float(a.abstained) for a in asked]),
        )

    def json(self) -> dict[str, Any]:
        """Plain means under their names, intervals under `intervals`."""
        found = {
            name: getattr(self, name)
            for name in (
                *("contains", "f1", "exact", "recall", "asserted_wrongly", "abstained_wrongly"),
            )
        }
        found["recall_at_k"] = found.pop("recall")
        means = {name: None if i is None else round(i.mean, 4) for name, i in found.items()}
        intervals = {
            name: [round(i.low, 4), round(i.high, 4)] for name, i in found.items() if i is not None
        }
        return {"k": self.k, **means, "intervals": intervals}

    def cells(self) -> list[str]:
        return [
            self.mode,
            str(self.k) if self.k else "",
            *(
                _points(value)
                for value in (
                    *(self.f1, self.contains, self.exact, self.recall),
                    *(self.asserted_wrongly, self.abstained_wrongly),
                )
            ),
        ]


@dataclass(frozen=True)
class Report:
    """All scores, and memory less RAG: at each k, and each at the k that is best for it."""

    name: str
    n: int
    answerable: int
    scores: list[Score]
    differences: dict[str, dict[str, Interval]]

    @classmethod
    def of(cls, name: str, answers: Mapping[tuple[Mode, int], list[Answered]]) -> "Report":
        """answers: by mode and k, each of the same questions in the same order."""
        scores = [Score.of(some) for some in answers.values()]
        some = next(iter(answers.values()))
        at: dict[str, tuple[list[Answered], list[Answered]]] = {}
        memory = [s for s in scores if s.mode == "memory"]
        rag = [s for s in scores if s.mode == "rag"]
        for score in memory:
            if ("rag", score.k) in answers:
                at[f"k={score.k}"] = answers["memory", score.k], answers["rag", score.k]
        if memory and rag:
            ours, theirs = best(memory).k, best(rag).k
            at[f"best: memory k={ours}, rag k={theirs}"] = (
                answers["memory", ours],
                answers["rag", theirs],
            )
        return cls(
            name,
            len(some),
            sum(a.answerable for a in some),
            scores,
            {label: _differences(*pair) for label, pair in at.items()},
        )

    def json(self, times: Mapping[Mode, float]) -> dict[str, Any]:
        """`modes` holds each at its best k; `times`: medians of the first token, ms, by mode."""
        modes = {}
        for mode in dict.fromkeys(score.mode for score in self.scores):
            some = [score for score in self.scores if score.mode == mode]
            modes[mode] = {
                **best(some).json(),
                "first_token_ms_p50": times.get(mode),
                "by_k": [score.json() for score in some],
            }
        return {
            "n": self.n,
            "answerable": self.answerable,
            "modes": modes,
            "memory_less_rag": {
                label: {name: asdict(value) for name, value in found.items()}
                for label, found in self.differences.items()
            },
        }

    def show(self) -> None:
        console.table(self._title(), _HEAD, [[*score.cells()] for score in self.scores])
        for label, found in self.differences.items():
            console.say(f"memory less RAG, {label}: {_said(found)}")

    def write(self, folder: Path, value: dict[str, Any]) -> None:
        """eval.json, eval.md and eval.svg."""
        lines = [_HEAD, ["---", *["---:"] * (len(_HEAD) - 1)], *(s.cells() for s in self.scores)]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        less = "".join(
            f"- memory less RAG, {label}: {_said(found)}\n"
            for label, found in self.differences.items()
        )
        (folder / "eval.md").write_text(f"## {self._title()}\n\n{table}\n{less}")
        (folder / "eval.json").write_text(json.dumps(value, indent=1) + "\n")
        points: dict[str, list[Point]] = {}
        for score in self.scores:
            if score.k and score.f1 is not None:
                f1 = score.f1
                points.setdefault(score.mode, []).append(
                    Point(score.k, 100 * f1.mean, 100 * f1.low, 100 * f1.high, str(score.k))
                )
        levels: dict[str, float] = {
            score.mode: 100 * score.f1.mean
            for score in self.scores
            if not score.k and score.f1 is not None
        }
        if points:
            drawn = plot(points, levels, "memories, k", "F1, points", bytes_across=False)
            (folder / "eval.svg").write_text(drawn)

    def _title(self) -> str:
        return (
            f"{self.name}: {self.n} questions, {self.answerable} answerable, in points of 100 with"
            " 95 % intervals"
        )


def best(scores: Sequence[Score]) -> Score:
    """The one with most F1; where nothing is answerable, with fewest wrong assertions."""

    def rank(score: Score) -> tuple[float, float]:
        wrong = 0.0 if score.asserted_wrongly is None else score.asserted_wrongly.mean
        return (0.0 if score.f1 is None else score.f1.mean, -wrong)

    return max(scores, key=rank)


def _differences(ours: Sequence[Answered], theirs: Sequence[Answered]) -> dict[str, Interval]:
    found = {}
    pairs = list(zip(ours, theirs, strict=True))
    asked = [(a, b) for a, b in pairs if a.answerable]
    nothing = [(a, b) for a, b in pairs if not a.answerable]
    if asked:
        for name in ("f1", "contains", "exact"):
            values, base = ([getattr(one[i], name) for one in asked] for i in (0, 1))
            found[name] = difference(values, base)
    if nothing:
        values, base = ([float(not one[i].abstained) for one in nothing] for i in (0, 1))
        found["asserted_wrongly"] = difference(values, base)
    return found


def _mean(values: Sequence[float]) -> Interval | None:
    return interval(values) if values else None


def _points(found: Interval | None) -> str:
    return "" if found is None else found.points()


def _said(found: dict[str, Interval]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {v.points('+')}" for name, v in found.items())
