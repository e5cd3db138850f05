"""The service under clients for a long time, killed in the middle: no error, and nothing grows."""

import argparse
import os
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import httpx
import psutil
import psycopg

from app.db.addresses import provisioning_url
from app.demo import sample
from app.local.processes import wait_until
from app.local.stack import ENCODING, Stack
from app.settings import settings
from tests.edges import issue
from tests.long.soak.clients import Client
from tests.serving import free_port

_CLIENTS = 8
_LONGEST_START = 60.0
_COUNTED = ("MiB", "open files", "threads", "connections")
# By how much the last third may be above the one before it, since nothing is ever quite even: the
# allocator takes memory in steps and keeps it.
_SHARE, _MORE = 1.03, 8.0


@dataclass
class Outcome:
    """What a run saw. Samples: MiB, open files, threads and connections, one a second."""

    seed: str
    requests: Counter[str] = field(default_factory=Counter)
    away: int = 0
    ready_seconds: float = 0.0
    samples: list[tuple[float, float, float, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.requests.items()))
        return [
            f"seed {self.seed}: {self.requests.total()} requests ({done})",
            f"killed once: ready again in {self.ready_seconds:.1f} s, {self.away} requests failed",
            *(
                f"{name}: {median(part[i] for part in self._third(2)):.0f} in the middle,"
                f" {median(part[i] for part in self._third(3)):.0f} at the end"
                for i, name in enumerate(_COUNTED)
            ),
            *(f"FAULT: {fault}" for fault in self.faults),
        ]

    def judge(self) -> None:
        """Add what has grown to the faults."""
        for i, name in enumerate(_COUNTED):
            before, after = (median(part[i] for part in self._third(n)) for n in (2, 3))
            if after > _SHARE * before + _MORE:
                self.faults.append(f"{name} grew from {before:.0f} to {after:.0f}")

    def _third(self, number: int) -> list[tuple[float, float, float, float]]:
        size = max(1, len(self.samples) // 3)
        return self.samples[(number - 1) * size : number * size] or self.samples


def run(seconds: float, seed: str, tell: Callable[[str], None] = print) -> Outcome:
    """Load the service for so long; the kill comes first, so that what follows shows growth."""
    outcome, over = Outcome(seed), threading.Event()
    os.environ["MEMBANK_API_PORT"] = str(free_port())  # nobody else takes it while it is dead
    settings.cache_clear()
    with sample.temporary_stack(tell, (*ENCODING, "api")) as stack:
        sample.fill()
        url = str(stack.addresses()["api_url"])
        keys = {tenant: issue(tenant, "hana").token for tenant in sample.TENANTS}
        crowd = [
            Client(number, url, tenant, keys[tenant], seed)
            for number in range(_CLIENTS)
            for tenant in [sample.TENANTS[number % len(sample.TENANTS)]]
        ]
        threads = [threading.Thread(target=one.run, args=(over,)) for one in crowd]
        for thread in threads:
            thread.start()
        try:
            over.wait(min(10.0, seconds / 4))
            outcome.ready_seconds = _kill(stack, url)
            _watch(stack, seconds, outcome, tell)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    for one in crowd:
        outcome.requests += one.seen.requests
        outcome.away += one.seen.away
        outcome.faults += one.seen.faults
    outcome.judge()
    return outcome


def _kill(stack: Stack, url: str) -> float:
    """Kill the service under its clients; seconds from its start until it is ready."""
    process = stack.processes.get("api")
    if process is not None:
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: stack.processes.get("api") is None, 30)
    started = time.monotonic()
    stack.service("api")

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    if not wait_until(ready, _LONGEST_START):
        raise TimeoutError("the service is not ready again")
    return time.monotonic() - started


def _watch(stack: Stack, seconds: float, outcome: Outcome, tell: Callable[[str], None]) -> None:
    process = stack.processes.get("api")
    if process is None:
        outcome.faults.append("the service ended")
        return
    service, until = psutil.Process(process.pid), time.monotonic() + seconds
    url = provisioning_url().set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < until:
            (connections,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'membank_app'"
            ).fetchone() or (0,)
            outcome.samples.append(
                (
                    service.memory_info().rss / 2**20,
                    service.num_fds(),
                    service.num_threads(),
                    connections,
                )
            )
            if len(outcome.samples) % 30 == 0:
                tell("MiB {:.0f}, open files {}, threads {}".format(*outcome.samples[-1]))
            threading.Event().wait(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    given = parser.parse_args()
    outcome = run(given.seconds, given.seed)
    print("\n".join(outcome.lines()))
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
