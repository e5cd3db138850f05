"""Loading memories from each place they can be in, and the first token of an answer from them.

The tiers take turns, so that a disturbance of the machine affects all alike; the object store, a
local folder, comes last. Encoding the same texts again is measured for comparison.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from app.answer.ask import ask
from app.answer.retrieval import Reader, found_for, load
from app.demo.sample import temporary_stack
from app.errors import UsageError
from app.process import console
from app.runtime.models import models
from app.settings import settings
from app.upkeep.move import move
from benchmarks.variables import WITHOUT_CACHE, variables
from benchmarks.vault import filled

_QUESTION = "How many days of leave are there?"
_TIERS: Mapping[str, Mapping[str, str]] = {
    "memory": {},
    "disk": {"MEMBANK_CACHE_BYTES": "0"},
    "postgres": WITHOUT_CACHE,
}
Times = dict[str, float]


def run(n: int, ks: Sequence[int], as_json: bool) -> None:
    """Measure medians over n loads and n answers of each kind, in milliseconds."""
    with temporary_stack(lambda _: None):
        reader = filled("cached")
        memories = len(found_for(reader.begin(), _QUESTION, 100, -1.0).passages)
        if memories < max(ks):
            raise UsageError(f"the sample has only {memories} memories: lower -k")
        rows = {k: _turns(reader, k, n, _TIERS) | _encoding(reader, k, n) for k in ks}
        with variables(MEMBANK_BLOB_STORE=str(settings().home / "objects")):
            for _ in move("object"):
                pass
            for k in ks:
                rows[k] |= _turns(reader, k, n, {"object": WITHOUT_CACHE})
    if as_json:
        console.print_json({"n": n, "by_k": [{"k": k, **row} for k, row in rows.items()]})
        return
    tiers = [*_TIERS, "object"]
    for what, title in (("load", "Loading k memories"), ("first", "First token of an answer")):
        more = ["encode"] if what == "load" else []
        cells: list[list[object]] = [
            [k, *(round(row[f"{what}_{tier}"], 2) for tier in tiers), *(row[m] for m in more)]
            for k, row in rows.items()
        ]
        console.table(f"{title}, milliseconds, median of {n}", ["k", *tiers, *more], cells)


def _turns(reader: Reader, k: int, n: int, tiers: Mapping[str, Mapping[str, str]]) -> Times:
    request = reader.begin()
    passages = found_for(request, _QUESTION, k, -1.0).passages
    dtype = models().lm.dtype

    def first() -> float:
        how: dict[str, Any] = {"mode": "memory", "least": -1.0, "max_tokens": 1}
        return ask(reader, _QUESTION, k=k, **how).timings_ms["first_token"]

    def loaded() -> float:
        return _ms(lambda: load(request, passages, dtype))

    spent: dict[str, list[float]] = {}
    for turn in range(n + 2):
        for tier, settings_of in tiers.items():
            with variables(**settings_of):
                for name, step in ((f"load_{tier}", loaded), (f"first_{tier}", first)):
                    took = step()
                    if turn >= 2:  # the first ones open connections and fill the tiers
                        spent.setdefault(name, []).append(took)
    return {name: median(times) for name, times in spent.items()}


def _encoding(reader: Reader, k: int, n: int) -> Times:
    m = models()
    texts = [p.text for p in found_for(reader.begin(), _QUESTION, k, -1.0).passages]
    tokens = [m.prompt.chunk(text) for text in texts]
    size = settings().batch_tokens
    times = [_ms(lambda: m.encoder.encode(tokens, size)) for _ in range(max(2, n // 5))]
    return {"encode": median(times[1:])}


def _ms(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1000
