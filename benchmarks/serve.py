"""The HTTP service under load: 1 to 64 clients, memory and RAG on the same questions.

The service runs in its own process, as `membank up` starts it. The clients are threads of this
process and read the stream with the standard library, which takes the least processor time. Each
mode has the adapter that was trained for it. The times of an answer's parts are those that the
service reports (`explain`); the rest of the client's first token is HTTP, the key and the threads.
"""

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from statistics import median, quantiles
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from app.access.keys import issue
from app.access.tenants import of_tenant
from app.demo import sample
from app.errors import MembankError, UsageError
from app.local.stack import ENCODING, Stack
from app.process import console

Mode = Literal["memory", "rag"]
MODES: tuple[Mode, ...] = ("memory", "rag")
_PARTS = ("search", "load", "queue", "prefill")
_TOKENS = 32


@dataclass(frozen=True)
class Asked:
    """An answer's times in milliseconds as the client saw them; its parts as the service reported
    them."""

    first_token: float
    total: float
    tokens: int
    parts: dict[str, float]


@dataclass(frozen=True)
class Row:
    """The number of concurrent clients and the times they saw, in milliseconds."""

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
        raise UsageError("the numbers of clients and requests must be at least 1")
    with sample.temporary_stack(console.complain, (*ENCODING, "api")) as stack:
        sample.fill()
        with of_tenant("admin", "northwind") as (connection, asker):
            key = issue(connection, asker.tenant or 0, "hana").token
        found = _measure(stack, key, clients, requests, k)
    if as_json:
        console.print_json({"k": k, "tokens": _TOKENS, "rows": [asdict(row) for row in found]})
        return
    report(found, k)


def report(found: Sequence[Row], k: int) -> None:
    """Print the clients' times, and how modes and loads compare."""
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
        console.say(f"one client: the first token comes {ratio:.1f} times sooner from memory")
    for row in found:
        if (alone := one[row.mode]) and row.clients > 1:
            ratio = row.requests_per_second / alone.requests_per_second
            console.say(f"{row.mode}, {row.clients} clients: {ratio:.1f} times the requests of one")


def _measure(stack: Stack, key: str, clients: Sequence[int], requests: int, k: int) -> list[Row]:
    client = Client(str(stack.addresses()["api_url"]), key, k)
    process = next(one for one in stack.running() if one.name == "api")
    server = psutil.Process(process.pid)
    found = []
    for mode in MODES:
        client.ask([one.question for one in sample.questions()], mode)
    for count, mode in itertools.product(clients, MODES):
        found.append(_load(client, server, mode, count, max(requests, 2 * count)))
        console.complain(f"{mode}, {count} clients: {found[-1].requests_per_second:.1f}/s")
    return found


def _load(client: "Client", server: psutil.Process, mode: Mode, clients: int, n: int) -> Row:
    texts = [one.question for one in sample.questions()]
    waiting = iter([texts[i % len(texts)] for i in range(n)])
    peaks: list[int] = []

    def told(_: Asked) -> None:
        peaks.append(server.memory_info().rss)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client.ask, waiting, mode, told) for _ in range(clients)]
        asked = [one for some in running for one in some.result()]
    return Row.of(mode, clients, asked, time.perf_counter() - started, max(peaks))


@dataclass(frozen=True)
class Client:
    """Asks questions, over a new connection for each call. Thread-safe."""

    url: str
    key: str
    k: int

    def ask(
        self,
        questions: Iterable[str],
        mode: Mode,
        told: Callable[[Asked], None] = lambda _: None,
    ) -> list[Asked]:
        """Ask the questions one after the other, calling `told` with each answer's times.

        Raises MembankError with the service's message.
        """
        place, found = urlsplit(self.url), []
        with closing(HTTPConnection(place.hostname or "", place.port, timeout=300)) as connection:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for question in questions:
                found.append(self._ask(connection, question, mode))
                told(found[-1])
        return found

    def _ask(self, connection: HTTPConnection, question: str, mode: Mode) -> Asked:
        body = {
            "model": sample.BANK,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": _TOKENS,
            "membank": {"k": self.k, "mode": mode, "threshold": -1, "explain": True},
        }
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        started, first, parts, tokens = time.perf_counter(), 0.0, dict[str, float](), 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            wrong = response.read().decode(errors="replace")[:300]
            raise MembankError(f"the service answered {response.status}: {wrong}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise MembankError(f"the service failed in an answer: {event['error']['message']}")
            said = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if said and not first:
                first = time.perf_counter()
            parts = event.get("membank", {}).get("timings_ms") or parts
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        now = time.perf_counter()
        return Asked((first - started) * 1000, (now - started) * 1000, tokens, parts)


def _percentiles(values: Iterable[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th percentiles."""
    found = list(values)
    cuts = quantiles(found, n=100, method="inclusive") if len(found) > 1 else [found[0]] * 99
    return cuts[49], cuts[94], cuts[98]
