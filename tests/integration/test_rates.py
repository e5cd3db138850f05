"""Rates of tenants, counted in a real Valkey: over all processes, and open while it is away."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import structlog

from app.api.http import rates as module
from app.api.http.rates import Rate, Rates
from app.errors import UsageError
from app.local.processes import Processes, wait_until
from app.local.valkey import EmbeddedValkey
from tests.serving import free_port

NOWHERE = "redis://127.0.0.1:{port}/0"


@dataclass
class Clock:
    """Seconds, set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    processes = Processes(tmp_path_factory.mktemp("valkey"))
    server = EmbeddedValkey(processes.home, processes)
    server.start()
    yield server
    server.stop()
    processes.end_strays()


@pytest.fixture
def valkey(server: EmbeddedValkey) -> EmbeddedValkey:
    server.start()
    client(server).storage.flushall()
    return server


def client(server: EmbeddedValkey) -> module.RedisStorage:
    return module.RedisStorage(server.url)


def taken(rates: Rates, tenant: str = "harbor") -> Rate:
    rate = rates.take(tenant)
    assert rate is not None
    return rate


def seconds_of(rates: Rates, requests: int) -> float:
    began = time.monotonic()
    assert [rates.take("harbor") for _ in range(requests)] == [None] * requests
    return time.monotonic() - began


def age(server: EmbeddedValkey, seconds: float) -> None:
    """Let all windows be older."""
    storage = client(server).storage
    for key in storage.keys("membank:rate*"):
        left = storage.pttl(key) - round(seconds * 1000)
        storage.pexpire(key, left) if left > 0 else storage.delete(key)


def test_two_processes_share_one_count(valkey: EmbeddedValkey) -> None:
    one, two = Rates(60, valkey.url), Rates(60, valkey.url)
    left = [taken(rates).left for _ in range(30) for rates in (one, two)]
    assert left == list(reversed(range(60)))
    for rates in (one, two):
        late = taken(rates)
        assert (late.left, 59 < late.wait <= 60) == (0, True)
    other = taken(two, "northwind")
    assert (other.left, other.wait) == (59, 0)


def test_requests_at_the_same_time_are_counted_each(valkey: EmbeddedValkey) -> None:
    both = [Rates(50, valkey.url) for _ in range(2)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: taken(both[n % 2]), range(100)))
    assert sum(rate.wait == 0 for rate in found) == 50


def test_what_was_taken_comes_back_little_by_little(valkey: EmbeddedValkey) -> None:
    rates = Rates(60, valkey.url)
    for _ in range(60):
        taken(rates)
    wait = taken(rates).wait
    age(valkey, wait + 15)
    # A quarter of the former minute is over, and no window of fixed minutes lets 60 more pass.
    passed = sum(taken(rates).wait == 0 for _ in range(60))
    assert 15 <= passed <= 18
    late = taken(rates)
    assert 0 < late.wait <= 2
    age(valkey, late.wait)
    assert taken(rates).wait == 0
    age(valkey, 120)
    full = taken(rates)
    assert full.left == 59
    assert full.headers["x-ratelimit-limit-requests"] == "60"
    assert full.headers["x-ratelimit-remaining-requests"] == "59"
    assert 119 < float(full.headers["x-ratelimit-reset-requests"].rstrip("s")) <= 120


def test_while_valkey_is_dead_all_pass_at_once_and_then_it_counts_again(
    valkey: EmbeddedValkey,
) -> None:
    clock = Clock()
    rates = Rates(2, valkey.url, clock)
    taken(rates)
    process = valkey._processes.get("valkey")
    assert process is not None
    with structlog.testing.capture_logs() as logs:
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: valkey._processes.get("valkey") is None, 30)
        seconds_of(rates, 1)
        assert seconds_of(rates, 1000) < 0.5
        valkey.start()
        assert seconds_of(rates, 10) < 0.5  # not asked yet
        clock.now = 6.0
        assert [taken(rates).wait > 0 for _ in range(3)][-1]
    told = [(entry["log_level"], entry["event"]) for entry in logs]
    assert told == [
        ("warning", "rates are not counted: Valkey does not answer"),
        ("info", "rates are counted again"),
    ]


def test_a_valkey_that_hangs_holds_up_one_request_each_five_seconds(
    valkey: EmbeddedValkey,
) -> None:
    clock = Clock()
    rates = Rates(60, valkey.url, clock)
    taken(rates)
    process = valkey._processes.get("valkey")
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for clock.now in (0.0, 6.0):
            assert seconds_of(rates, 1) < 2
            assert seconds_of(rates, 1000) < 0.5
    finally:
        os.kill(process.pid, signal.SIGCONT)
    for clock.now in (12.0, 18.0, 24.0):
        if rates.take("harbor") is not None:
            return
    pytest.fail("nobody asked again")


def test_the_look_up_of_a_name_holds_up_one_request_each_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, asked = Clock(), []
    rates = Rates(60, NOWHERE.format(port=free_port()), clock)

    def hangs(tenant: str) -> None:
        asked.append(tenant)
        time.sleep(2)

    monkeypatch.setattr(rates, "_counted", hangs)
    assert seconds_of(rates, 1) < 1.5
    for clock.now in (1.0, 6.0):
        with ThreadPoolExecutor(16) as pool:
            assert not any(pool.map(rates.take, ["harbor"] * 100))
    assert len(asked) == 2


def test_one_that_was_never_there_costs_nothing() -> None:
    rates = Rates(60, NOWHERE.format(port=free_port()))
    assert seconds_of(rates, 1000) < 2


def test_without_a_rate_nobody_is_asked() -> None:
    assert Rates(0).take("harbor") is None


def test_an_address_that_is_none_is_told_at_the_start() -> None:
    with pytest.raises(UsageError, match="MEMBANK_REDIS_URL"):
        Rates(60, "http://127.0.0.1")
