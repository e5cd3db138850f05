"""Memories searched for again during an answer: what that costs, and whether it answers more.

Two questions of the sample handbooks are asked as one, so that one memory is not enough. Each
interval, never included, answers every pair; they take turns within each pair, so that a
disturbance of the machine meets all of them. Answers end where the model ends them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from app.answer.retrieval import Reader
from app.answer.service import Answer, ask
from app.demo import sample
from app.errors import UsageError
from app.evaluation.metrics import contains
from app.process import console
from app.settings import LEAST_REFRESH

_MIN_SCORE = -1.0  # every passage counts: a question of two parts is near to neither


@dataclass(frozen=True)
class Pair:
    """Two questions in one, with the right answers to each."""

    tenant: str
    question: str
    right: tuple[list[str], list[str]]


@dataclass(frozen=True)
class Row:
    """One interval over all pairs.

    contained: right answers in the answers, of so many questions; tokens: of all answers;
    refreshes: searches in the middle of them; swaps: those that brought other memories.
    Times are medians in milliseconds, of a token and of one refresh: load and reread are of those
    that swap. share: time of all refreshes against that of all tokens after the first.
    """

    k: int
    every: int
    contained: int
    questions: int
    tokens: int
    refreshes: int
    swaps: int
    token_ms: float
    search_ms: float
    load_ms: float
    reread_ms: float
    share: float


def pairs(n: int) -> list[Pair]:
    """The first `n` of two questions each, of both tenants in turn. Each question comes twice.

    Raises UsageError when there are fewer.
    """
    asked = sample.questions()
    found = [
        Pair(
            tenant,
            f"{one.question} And {other.question[0].lower()}{other.question[1:]}",
            (one.answers[tenant], other.answers[tenant]),
        )
        for one, other in zip(asked, asked[1:] + asked[:1], strict=True)
        for tenant in sample.TENANTS
    ]
    if not 1 <= n <= len(found):
        raise UsageError(f"-n is {n}: give 1 to {len(found)}")
    return found[:n]


def run(n: int, ks: Sequence[int], every: Sequence[int], max_tokens: int, as_json: bool) -> None:
    """Measure on the sample handbooks in a temporary stack and print the table.

    Raises UsageError for values that cannot be.
    """
    asked = pairs(n)
    if bad := [k for k in ks if not 1 <= k <= 100]:
        raise UsageError(f"-k is {bad[0]}: give 1 to 100")
    if bad := [one for one in every if not LEAST_REFRESH <= one < max_tokens]:
        raise UsageError(
            f"--every is {bad[0]}: give {LEAST_REFRESH} to {max_tokens - 1}, less than --max-tokens"
        )
    intervals = list(dict.fromkeys([0, *every]))
    with sample.temporary_stack(console.complain):
        sample.fill()
        readers = {t: Reader.of(t, sample.BANK, "hana") for t in sample.TENANTS}
        rows = [row for k in ks for row in measure(readers, asked, k, intervals, max_tokens)]
    if as_json:
        console.print_json(summary(rows, n, max_tokens))
    else:
        report(rows, n, max_tokens)


def measure(
    readers: dict[str, Reader], asked: Sequence[Pair], k: int, every: Sequence[int], max_tokens: int
) -> list[Row]:
    """Every interval on every pair, after a warm-up."""
    found: dict[int, list[tuple[Answer, float]]] = {one: [] for one in every}
    for number, pair in enumerate([asked[0], *asked]):
        for one in every:
            answer = ask(
                readers[pair.tenant],
                pair.question,
                k=k,
                max_tokens=max_tokens,
                least=_MIN_SCORE,
                refresh=one,
            )
            if number:
                right = sum(contains(answer.answer, wordings) for wordings in pair.right)
                found[one].append((answer, right))
    return [_row(k, one, answers) for one, answers in found.items()]


def report(rows: Sequence[Row], n: int, max_tokens: int) -> None:
    """Print the table."""
    console.table(
        f"{n} questions of two parts, at most {max_tokens} tokens; milliseconds: medians of a"
        " token and of a refresh's search, load and reread",
        [
            *("k", "every", "contained", "of", "tokens", "refreshes", "swaps", "token"),
            *("search", "load", "reread", "refreshes / tokens"),
        ],
        [
            [row.k, row.every or "never", *list(asdict(row).values())[2:-1], f"{row.share:.2f}"]
            for row in rows
        ],
    )


def summary(rows: Sequence[Row], n: int, max_tokens: int) -> dict[str, Any]:
    return {"n": n, "max_tokens": max_tokens, "rows": [asdict(row) for row in rows]}


def _row(k: int, every: int, answers: Sequence[tuple[Answer, float]]) -> Row:
    given = [answer for answer, _ in answers]
    after_first = [(a, a.usage["completion_tokens"] - 1) for a in given]
    refreshed, swapped = [a for a in given if a.refreshes], [a for a in given if a.swaps]
    return Row(
        k,
        every,
        int(sum(right for _, right in answers)),
        2 * len(given),
        sum(a.usage["completion_tokens"] for a in given),
        sum(a.refreshes for a in given),
        sum(a.swaps for a in given),
        _median([_decoding(a) / n for a, n in after_first if n]),
        _median([a.timings_ms["refresh_search"] / a.refreshes for a in refreshed]),
        _median([a.timings_ms["refresh_load"] / a.swaps for a in swapped]),
        _median([_rereading(a) / a.swaps for a in swapped]),
        sum(a.timings_ms["refresh"] for a in given) / max(1e-9, sum(map(_decoding, given))),
    )


def _decoding(answer: Answer) -> float:
    times = answer.timings_ms
    return times["total"] - times["first_token"] - times["refresh"]


def _rereading(answer: Answer) -> float:
    times = answer.timings_ms
    return times["refresh"] - times["refresh_search"] - times["refresh_load"]


def _median(values: Sequence[float]) -> float:
    """0 where there are none."""
    return median(values) if values else 0.0
