"""The run: writers in threads, kills in between, and the verdict when all is quiet again."""

import argparse
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import psycopg
import redis

from app.bank.roles import BankRole
from app.db import session
from app.db.addresses import provisioning_url, redis_url
from app.demo.sample import temporary_stack
from app.errors import MembankError
from app.local.processes import wait_until
from app.local.stack import ENCODING, Stack
from app.runtime.identity import profile
from app.runtime.models import models
from app.settings import settings
from tests import edges
from tests.edges import add_bank, add_principal, add_tenant, grant, issue
from tests.long.chaos.changes import Client, Writer
from tests.long.chaos.verdict import faults

SERVICES = (*ENCODING, "api")
VICTIMS = (*("worker", "worker", "relay", "valkey", "postgres") * 3, "api")
_LONGEST_QUIET = 900.0
ENVIRONMENT = {
    "MEMBANK_LEASE_SECONDS": "4",
    # Kills are no fault of the chunk in hand; how poison ends is another test's.
    "MEMBANK_MAX_ATTEMPTS": "1000",
    # The fitted codec is coarse by design: against it, a wrong memory would be harder to tell.
    "MEMBANK_CODEC": "int8",
    "MEMBANK_THREADS": "1",
}


@dataclass
class Outcome:
    """What a run did, and every promise that did not hold."""

    seed: str
    kills: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    memories: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        killed = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        return [
            f"seed {self.seed}: {self.changes} changes, {self.kills.total()} kills ({killed}),"
            f" {self.memories} memories at the end, {self.seconds:.0f} s",
            *(f"FAULT: {fault}" for fault in self.faults),
        ]


def run(kills: int, seed: str, writers: int = 3, tell: Callable[[str], None] = print) -> Outcome:
    """Kill so many times, every process in turn by chance, and see whether anything was lost.

    The environment must hold ENVIRONMENT. The seed repeats the changes and the order of kills; how
    they meet is up to the machine.
    """
    started, outcome = time.monotonic(), Outcome(seed)
    with temporary_stack(tell, SERVICES) as stack:
        models()
        over = threading.Event()
        crowd = [_writer(stack, number, seed) for number in range(writers)]
        threads = [threading.Thread(target=one.run, args=(over,)) for one in crowd]
        for thread in threads:
            thread.start()
        try:
            _kill(stack, kills, random.Random(seed), outcome, tell)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        outcome.changes = sum(one.done for one in crowd)
        outcome.faults += [f"writer {o.number}: {o.failed!r}" for o in crowd if o.failed]
        _settle(outcome)
        url = str(provisioning_url().set(drivername="postgresql").render_as_string(False))
        words = [word for one in crowd for word in one.words]
        outcome.faults += faults(url, words, stack.home, redis_url())
        with psycopg.connect(url) as connection:
            (outcome.memories,) = connection.execute(
                "SELECT count(*) FROM memory_blob"
            ).fetchone() or (0,)
    outcome.seconds = time.monotonic() - started
    return outcome


def _writer(stack: Stack, number: int, seed: str) -> Writer:
    tenant = f"chaos-{number}"
    add_tenant(tenant)
    bank = add_bank(tenant, "handbook", profile().id, profile().json())
    add_principal(tenant, "writer")
    grant(bank, "principal:writer", BankRole.WRITER)
    key = issue(tenant, "writer", ("read", "write")).token
    client = Client(lambda: stack.addresses()["api_url"], key, f"vs_{bank.id}")
    return Writer(number, bank, seed, client)


def _kill(
    stack: Stack, kills: int, chance: random.Random, outcome: Outcome, tell: Callable[[str], None]
) -> None:
    for number in range(kills):
        threading.Event().wait(chance.uniform(0.1, 2.0))
        if chance.random() < 0.1:
            _flush()
        name = chance.choice(VICTIMS)
        process = stack.processes.get(name)
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
            outcome.kills[name] += 1
            wait_until(partial(_gone, stack, name), 30)
        _raise(stack)
        if (number + 1) % 10 == 0:
            tell(f"{number + 1} of {kills} kills; {_queue()}")


def _gone(stack: Stack, name: str) -> bool:
    return stack.processes.get(name) is None


def _raise(stack: Stack) -> None:
    """Start what is missing, as an operator or a service manager does."""
    session.dispose()
    stack.servers()
    for name in SERVICES:
        stack.service(name)


def _flush() -> None:
    with redis.Redis.from_url(redis_url()) as valkey:
        valkey.flushall()


def _settle(outcome: Outcome) -> None:
    """Wait until nothing is left to do. No process is started again for it."""
    if not wait_until(lambda: not any(edges.queue().values()), _LONGEST_QUIET):
        outcome.faults.append(f"the queue does not empty: {_queue()}")


def _queue() -> str:
    try:
        return ", ".join(f"{count} {name}" for name, count in edges.queue().items())
    except MembankError as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    settings.cache_clear()
    print(f"seed {given.seed}")
    outcome = run(given.kills, given.seed)
    print("\n".join(outcome.lines()))
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
