"""The HTTP service under load: 1 to 64 clients, memory beside RAG on the same questions.

The service is a process of its own, as `membank up` starts it; the clients are in this one and
read its stream as any client of OpenAI's would. Each mode has the adapter that was trained for it.
Times of the parts are those that the service tells (`explain`); what is left of the client's first
token is HTTP, the key and the threads.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Literal

import httpx
import psutil

from app import console
from app.access.keys import issue
from app.demo import sample
from app.errors import MembankError, UsageError
from app.local.stack import ENCODING, Stack

Mode = Literal["memory", "rag"]
MODES: tuple[Mode, ...] = ("memory", "rag")
_PARTS = ("search", "load", "queue", "prefill")
_TOKENS = 32


@dataclass(frozen=True)
class Asked:
    """One answer as its client saw it, in milliseconds; parts as the service told them."""

    first_token: float
    total: float
    tokens: int
    parts: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Clients at a time, and what they saw. Times in milliseconds."""

    mode: Mode
    clients: int
    requests_per_second: float
    tokens_per_second: float
    first_token_p50: float
    first_token_p95: float
    first_token_p99: float
    total_p50: float
    total_p95: float
    total_p99: float
    parts_p50: dict[str, float]
    peak_mib: float

    @classmethod
    def of(
        cls, mode: Mode, clients: int, asked: Sequence[Asked], seconds: float, peak: int
    ) -> "Row":
        parts = {name: median(one.parts[name] for one in asked) for name in _PARTS}
        outside = [one.first_token - one.parts["queue"] - one.parts["prefill"] for one in asked]
        parts["outside the model"] = median(outside)
        return cls(
            mode,
            clients,
            len(asked) / seconds,
            sum(one.tokens for one in asked) / seconds,
            *_percentiles(one.first_token for one in asked),
            *_percentiles(one.total for one in asked),
            {name: round(value, 2) for name, value in parts.items()},
            peak / 2**20,
        )


def run(clients: Sequence[int], requests: int, k: int, as_json: bool) -> None:
    """Measure on the sample handbooks in a temporary stack and print the table."""
    if requests < 1 or min(clients) < 1:
        raise UsageError("clients and requests: give at least 1 each")
    with sample.temporary_stack(console.complain, (*ENCODING, "api")) as stack:
        sample.fill()
        key = issue("northwind", "hana").token
        found = asyncio.run(_measure(stack, key, clients, requests, k))
    if as_json:
        console.print_json({"k": k, "tokens": _TOKENS, "rows": [asdict(row) for row in found]})
        return
    report(found, k)


def report(found: Sequence[Row], k: int) -> None:
    """Print what the clients saw, and how the modes and the loads compare."""
    head = ["mode", "clients", "requests/s", "tokens/s"]
    head += ["first p50", "p95", "p99", "total p50", "p95", "p99", "queue", "outside", "MiB"]
    rows: list[list[object]] = [
        [
            *(r.mode, r.clients, round(r.requests_per_second, 2), round(r.tokens_per_second)),
            *(round(x) for x in (r.first_token_p50, r.first_token_p95, r.first_token_p99)),
            *(round(x) for x in (r.total_p50, r.total_p95, r.total_p99)),
            *(round(r.parts_p50["queue"]), round(r.parts_p50["outside the model"], 1)),
            round(r.peak_mib),
        ]
        for r in found
    ]
    console.table(f"k = {k}, at most {_TOKENS} tokens, milliseconds", head, rows)
    by = {(r.mode, r.clients): r for r in found}
    one = {mode: by.get((mode, 1)) for mode in MODES}
    if (memory := one["memory"]) and (rag := one["rag"]):
        ratio = rag.first_token_p50 / memory.first_token_p50
        console.say(f"one client: first token {ratio:.1f} times sooner from memory than from text")
    for row in found:
        if (alone := one[row.mode]) and row.clients > 1:
            ratio = row.requests_per_second / alone.requests_per_second
            console.say(f"{row.mode}, {row.clients} clients: {ratio:.1f} times the requests of one")


async def _measure(
    stack: Stack, key: str, clients: Sequence[int], requests: int, k: int
) -> list[Row]:
    url = stack.addresses()["api_url"]
    process = next(one for one in stack.running() if one.name == "api")
    server = psutil.Process(process.pid)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    found = []
    async with httpx.AsyncClient(
        base_url=str(url),
        headers={"Authorization": f"Bearer {key}"},
        timeout=300,
        limits=limits,
    ) as client:
        for mode in MODES:
            for question in sample.questions():
                await _ask(client, question.question, mode, k)
        for count, mode in itertools.product(clients, MODES):
            found.append(await _load(client, server, mode, count, max(requests, 2 * count), k))
            console.complain(f"{mode}, {count} clients: {found[-1].requests_per_second:.1f}/s")
    return found


async def _load(
    client: httpx.AsyncClient, server: psutil.Process, mode: Mode, clients: int, n: int, k: int
) -> Row:
    texts = [one.question for one in sample.questions()]
    waiting = iter([texts[i % len(texts)] for i in range(n)])
    asked: list[Asked] = []
    peak = 0

    async def one() -> None:
        nonlocal peak
        for question in waiting:
            asked.append(await _ask(client, question, mode, k))
            peak = max(peak, server.memory_info().rss)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return Row.of(mode, clients, asked, time.perf_counter() - started, peak)


async def _ask(client: httpx.AsyncClient, question: str, mode: Mode, k: int) -> Asked:
    body = {
        "model": sample.BANK,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": _TOKENS,
        "membank": {"k": k, "mode": mode, "threshold": -1, "explain": True},
    }
    started, first, parts, tokens = time.perf_counter(), 0.0, dict[str, float](), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            told = (await response.aread()).decode(errors="replace")[:300]
            raise MembankError(f"the service answers {response.status_code}: {told}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise MembankError(f"the service fails in an answer: {event['error']['message']}")
            said = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if said and not first:
                first = time.perf_counter()
            parts = event.get("membank", {}).get("timings_ms") or parts
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    now = time.perf_counter()
    return Asked((first - started) * 1000, (now - started) * 1000, tokens, parts)


def _percentiles(values: Iterable[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th."""
    found = list(values)
    cuts = quantiles(found, n=100, method="inclusive") if len(found) > 1 else [found[0]] * 99
    return cuts[49], cuts[94], cuts[98]
