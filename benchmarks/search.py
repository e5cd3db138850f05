"""Search under access lists, compared with one vector index over all tenants and a WHERE clause.

Tenants of several sizes share a table with many others. Readers may read all of a tenant's
documents, a tenth, or a hundredth.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from app.demo.sample import temporary_stack
from app.process import console
from app.search.indexes import keep
from app.search.search import search
from app.settings import settings
from benchmarks.search_peers import LANGCHAIN, PLAIN, Find, LangChain, Plain
from benchmarks.search_rows import DIMENSIONS, PROFILE, SHARES, Array, Filled, Keys, Rows

_K = 10
_CLIENTS = 8


@dataclass(frozen=True)
class Row:
    """The figures of one way to search, for one tenant and one reader. Times are in milliseconds.

    `fewest` is the smallest number of rows that came back where `there` could have. `p50_8` is the
    median with 8 concurrent clients.
    """

    way: str
    memories: int
    readable: int
    recall: float
    fewest: int
    there: int
    p50: float
    p95: float
    p50_8: float


@dataclass(frozen=True)
class Plan:
    """The sizes of the tenants asked, the rows of all tenants, and the questions of each reader.

    `langchain` is a Python that has langchain-postgres, to measure it too.
    """

    sizes: tuple[int, ...] = (10, 1_000, 10_000, 100_000)
    rows: int = 1_000_000
    questions: int = 60
    seed: int = 0
    langchain: Path | None = None


def run(plan: Plan, corpus: Path | None, as_json: bool) -> None:
    """Fill a temporary database and measure. `corpus` is a file of passages that give real keys."""
    keys = Keys(plan.seed, None if corpus is None else _real(corpus))
    with temporary_stack(console.complain, services=()) as stack:
        assert stack.postgres is not None  # noqa: S101 (the temporary stack's own)
        rows = Rows(stack.postgres.url, keys)
        asked = {size: rows.tenant(f"size{size}", size) for size in plan.sizes[:2]}
        rows.settle()
        middle = asked[plan.sizes[:2][-1]]
        alone = _alone(middle, keys, plan)
        asked |= {size: rows.tenant(f"size{size}", size) for size in plan.sizes[2:]}
        _fill(rows, max(0, plan.rows - sum(plan.sizes)))
        rows.settle()
        started = time.perf_counter()
        made = keep(settings().hnsw_from).made
        seconds = time.perf_counter() - started
        beside = _alone(middle, keys, plan)
        console.complain(
            f"indexes {seconds:.1f} s; alone {alone} ms, with the other tenants {beside} ms"
        )
        questions = {size: _questions(filled, keys, plan) for size, filled in asked.items()}
        found = [
            row
            for words in (False, True)
            for size, filled in asked.items()
            for row in _ours(filled, questions[size], words)
        ]
        seconds_of = {"membank": round(seconds, 1)}
        with Plain(stack.postgres.url, _CLIENTS) as plain:
            seconds_of[PLAIN[0]] = round(plain.seconds, 1)
            for way in PLAIN:
                plain.change(way)
                found += _theirs(way, plain, asked, questions)
            if plan.langchain is not None:
                with LangChain(stack.postgres.url, plan.langchain, _CLIENTS) as langchain:
                    seconds_of[LANGCHAIN] = round(langchain.seconds, 1)
                    found += _theirs(LANGCHAIN, langchain, asked, questions)
    value = {
        "rows": plan.rows,
        "keys": "drawn" if corpus is None else corpus.name,
        "indexes": len(made),
        "index_seconds": seconds_of,
        "alone_ms": alone,
        "beside_ms": beside,
        "results": [asdict(row) for row in found],
    }
    if as_json:
        console.print_json(value)
    else:
        _show(value, found)


def _show(value: dict[str, Any], found: Sequence[Row]) -> None:
    head = ["", "memories", "readable", f"recall@{_K}", "fewest", "of"]
    console.table(
        f"{value['rows']} rows; milliseconds",
        [*head, "p50", "p95", f"p50, {_CLIENTS} clients"],
        [list(asdict(row).values()) for row in found],
    )
    console.say(
        f"{value['indexes']} indexes of large banks; seconds to build them, and the peers' one:"
        f" {value['index_seconds']}"
    )
    console.say(
        f"the second tenant alone {value['alone_ms']} ms (p50), with the other tenants"
        f" {value['beside_ms']} ms"
    )


def _fill(rows: Rows, count: int) -> None:
    with console.progress() as bar:
        task = bar.add_task("rows", total=count, rate="")
        for before, now in pairwise([0, *rows.others(count)]):
            bar.update(task, advance=now - before)


def _real(corpus: Path) -> Array:
    """Keys of the pieces of a file of passages, from this machine's cache where it has them."""
    from app.evaluation.corpus import Vectors, pieces_of
    from app.evaluation.retrieval import read_corpus
    from app.runtime.identity import cache, count_tokens
    from app.runtime.models import models

    passages, _ = read_corpus(corpus)
    m = models()
    vectors = Vectors(m.embedder, m.profile.embedder, cache() / "vectors")
    found: Array = vectors.of([p.text for p in pieces_of(passages, count_tokens)]).numpy()
    if found.shape[1] != DIMENSIONS:
        raise ValueError(f"the keys have {found.shape[1]} dimensions, not {DIMENSIONS}")
    return found


@dataclass(frozen=True)
class _Question:
    key: Array
    words: str


def _questions(filled: Filled, keys: Keys, plan: Plan) -> list[_Question]:
    """Questions near the tenant's memories, with some of their words."""
    chance = np.random.default_rng(plan.seed + 1)
    chosen = chance.integers(len(filled.keys), size=plan.questions)
    near = keys.near(filled.keys[chosen])
    words = [" ".join(chance.choice(filled.texts[i].split(), size=6)) for i in chosen]
    return [_Question(key, text) for key, text in zip(near, words, strict=True)]


def _alone(filled: Filled, keys: Keys, plan: Plan) -> float:
    """Median time in milliseconds of a search by the reader who may read everything."""
    asked = _questions(filled, keys, plan)
    find = _finder(filled, 100, asked, True)
    return round(statistics.median(_timed(find, i % len(asked))[1] for i in range(200)), 2)


def _finder(filled: Filled, share: int, asked: Sequence[_Question], words: bool) -> Find:
    of = (filled.readers[share], filled.bank.id, PROFILE)
    vectors = [question.key.tolist() for question in asked]

    def find(i: int) -> list[int]:
        found = search(*of, vectors[i], _K, asked[i].words if words else "")
        return [passage.id for passage in found]

    return find


def _ours(filled: Filled, asked: Sequence[_Question], words: bool) -> list[Row]:
    name = "membank, key and words" if words else "membank, key alone"
    return [
        _row(name, filled, share, asked, _finder(filled, share, asked, words)) for share in SHARES
    ]


def _theirs(
    way: str,
    peer: Plain | LangChain,
    asked: Mapping[int, Filled],
    questions: Mapping[int, Sequence[_Question]],
) -> list[Row]:
    rows = []
    for size, filled in asked.items():
        keys = [question.key for question in questions[size]]
        for share in SHARES:
            find = peer.finder(filled, share, keys, _K)
            rows.append(_row(way, filled, share, questions[size], find))
    return rows


def _row(way: str, filled: Filled, share: int, asked: Sequence[_Question], find: Find) -> Row:
    some = range(len(asked))
    for i in some[:5]:
        find(i)
    single = [_timed(find, i) for i in some]
    with ThreadPoolExecutor(_CLIENTS) as clients:
        many = list(clients.map(lambda i: _timed(find, i)[1], some))
    right = [filled.nearest(question.key, share, _K) for question in asked]
    brought, times = [got for got, _ in single], [spent for _, spent in single]
    hits = [len(set(got) & set(want)) / len(want) for got, want in zip(brought, right, strict=True)]
    readable = len(filled.readable(share))
    row = Row(
        way=way,
        memories=len(filled.keys),
        readable=readable,
        recall=round(statistics.mean(hits), 4),
        fewest=min(map(len, brought)),
        there=min(_K, readable),
        p50=round(statistics.median(times), 2),
        p95=round(float(np.percentile(times, 95)), 2),
        p50_8=round(statistics.median(many), 2),
    )
    console.complain(" ".join(map(str, asdict(row).values())))  # a run takes long
    return row


def _timed(find: Find, i: int) -> tuple[list[int], float]:
    started = time.perf_counter()
    found = find(i)
    return found, 1000 * (time.perf_counter() - started)
