"""Measures whether a tenant can tell from timing that another with the same text asked before it.

Two tenants have the same handbook; a third has a different one. Each round starts with empty
caches: first the twin or the third tenant asks, in random order, then ours asks the same question.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from app.answer.ask import ask
from app.answer.cache import cache
from app.answer.retrieval import Reader
from app.demo.sample import temporary_stack
from app.evaluation.metrics import Interval, difference
from app.process import console
from benchmarks.variables import variables
from benchmarks.vault import filled

_QUESTION = "How many days of leave are there?"
_STEPS = ("search", "load", "first_token")


def run(n: int, k: int, as_json: bool) -> None:
    """Run n rounds of each kind and print medians and paired differences in milliseconds."""
    with temporary_stack(lambda _: None):
        ours, twin, third = filled("ours"), filled("twin"), filled("third", backwards=True)
        times: dict[str, list[Mapping[str, float]]] = {"twin": [], "third": []}
        hits = 0.0
        for turn in range(n + 2):
            kinds = [("twin", twin), ("third", third)]
            random.Random(turn).shuffle(kinds)
            for kind, neighbour in kinds:
                spent, found = _round(neighbour, ours, k)
                if turn >= 2:  # the first ones open connections
                    times[kind].append(spent)
                    hits += found
    _tell(n, k, times, hits, as_json)


def _round(neighbour: Reader, ours: Reader, k: int) -> tuple[Mapping[str, float], float]:
    """Time our question after the neighbour's, and count the memories that came from a cache."""
    with TemporaryDirectory() as folder, variables(MEMBANK_CACHE_FOLDER=str(Path(folder) / "c")):
        _first_token(neighbour, k)
        before = cache().stats()
        spent = _first_token(ours, k)
        after = cache().stats()
    return spent, sum(after[tier]["hits"] - before[tier]["hits"] for tier in ("memory", "disk"))


def _first_token(reader: Reader, k: int) -> Mapping[str, float]:
    return ask(reader, _QUESTION, mode="memory", k=k, least=-1.0, max_tokens=1).timings_ms


def _tell(
    n: int, k: int, times: Mapping[str, list[Mapping[str, float]]], hits: float, as_json: bool
) -> None:
    rows: dict[str, tuple[float, float, Interval]] = {}
    for step in _STEPS:
        twin, third = ([one[step] for one in times[kind]] for kind in ("twin", "third"))
        rows[step] = (median(twin), median(third), difference(twin, third))
    if as_json:
        told = {
            step: {"twin": twin, "third": third, "difference": [more.mean, more.low, more.high]}
            for step, (twin, third, more) in rows.items()
        }
        console.print_json({"n": n, "k": k, "cache_hits": hits, "ms": told})
        return
    cells: list[list[object]] = [
        [step, round(twin, 2), round(third, 2), f"{m.mean:+.2f} [{m.low:+.2f}, {m.high:+.2f}]"]
        for step, (twin, third, m) in rows.items()
    ]
    title = f"Milliseconds of a first question with k = {k} after another tenant's, {n} rounds"
    head = ["", "same text (median)", "other text", "mean difference, 95 %"]
    console.table(title, head, cells)
    console.say(f"{hits:.0f} memories came from what the other tenant had loaded")
