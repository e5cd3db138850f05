"""`membank up`, `status`, `down`: once for real, and otherwise with services that only say that
they are ready, since their supervision is what is tested. The servers are real each time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.db.session import dispose
from app.local import stack as supervision
from app.local.postgres import EmbeddedPostgres
from app.local.processes import Processes, wait_until
from app.local.valkey import EmbeddedValkey
from app.settings import settings
from tests.e2e.conftest import Run
from tests.servers import lend

READY = {
    "postgres": "ready to accept connections",
    "valkey": "Ready to accept connections",
    "worker": " ready.",
    "relay": "event=started",
    "api": "event=started",
}
"""What each process writes into its log when it is at work."""
STUBS = dict.fromkeys(supervision.SERVICES, "tests.e2e.stub_service")

Up = Callable[..., dict[str, int]]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a user's nor those of a stack that other tests use."""
    for name in [name for name in os.environ if name.startswith("MEMBANK_")]:
        monkeypatch.delenv(name)
    settings.cache_clear()
    yield
    dispose()
    settings.cache_clear()


@pytest.fixture(scope="module")
def shared_home(laid_out_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("stack") / "home with a space"
    lend(laid_out_home, home)
    yield home
    processes = Processes(home)
    for server in (EmbeddedValkey(home, processes), EmbeddedPostgres(home, processes)):
        server.stop()
    processes.end_strays()


@pytest.fixture
def home(shared_home: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of the command in this process, whose services are stubs."""
    monkeypatch.setenv("MEMBANK_HOME", str(shared_home))
    monkeypatch.setattr(supervision, "SERVICES", STUBS)
    return shared_home


@pytest.fixture
def up(home: Path, membank: Run) -> Up:
    """`membank up`: the pids by name."""

    def run(*options: str) -> dict[str, int]:
        return pids(said(membank("up", *options, "--json")))

    return run


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def pids(status: dict[str, Any]) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in status["processes"]}


def families(running: dict[str, int]) -> list[psutil.Process]:
    """The processes and all that they have started."""
    found = [psutil.Process(pid) for pid in running.values()]
    return [each for one in found for each in (one, *one.children(recursive=True))]


@pytest.mark.timeout(600)
def test_a_real_stack_is_started_once_serves_and_leaves_no_process(tmp_path: Path) -> None:
    home = tmp_path / "home with a space"

    def run(*arguments: str) -> dict[str, Any]:
        return said(
            subprocess.run(
                [sys.executable, "-m", "app.cli", *arguments, "--json"],
                env=os.environ | {"MEMBANK_HOME": str(home)},
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )
        )

    try:
        started = run("up")
        assert started["running"]
        assert set(pids(started)) == set(READY)
        for process in started["processes"]:
            assert psutil.pid_exists(process["pid"])
            assert READY[process["name"]] in Path(process["log"]).read_text()
        assert httpx.get(f"{started['api_url']}/health/ready").status_code == 200
        assert run("doctor")["good"]
        again = run("up")
        assert (pids(again), again["api_url"]) == (pids(started), started["api_url"])
        everything = families(pids(started))
    finally:
        ended = run("down")
    assert set(ended["ended"]) == set(READY)
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert alive == []
    assert Processes(home).strays() == []


def test_before_the_first_start_status_says_what_to_do_and_down_is_harmless(
    home: Path, membank: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMBANK_HOME", str(tmp_path / "new"))
    done = membank("status")
    assert done.returncode == 0
    assert "membank up" in done.stdout
    assert not said(membank("status", "--json"))["running"]
    assert membank("down").returncode == 0


def test_a_second_up_starts_nothing_new(up: Up, membank: Run) -> None:
    first = up()
    assert set(first) == set(READY)
    assert said(membank("status", "--json"))["running"]
    assert up() == first


@pytest.mark.parametrize("name", sorted(READY))
def test_what_was_killed_is_started_again_and_the_rest_left_alone(
    home: Path, up: Up, membank: Run, name: str
) -> None:
    before = up()
    os.kill(before[name], signal.SIGKILL)
    assert wait_until(lambda: Processes(home).get(name) is None, 60)
    shown = said(membank("status", "--json"))
    assert name not in pids(shown)
    # Without Valkey the services run, and lose nothing.
    assert shown["running"] == (name == "valkey")
    after = up()
    assert set(after) == set(READY)
    assert {n for n in READY if after[n] != before[n]} == {name}


def test_a_service_that_ends_at_once_is_reported_with_its_log(
    home: Path, up: Up, membank: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(up()["relay"], signal.SIGKILL)
    assert wait_until(lambda: Processes(home).get("relay") is None, 60)
    monkeypatch.setitem(STUBS, "relay", "tests.no_such_module")
    done = membank("up")
    assert done.returncode == 1
    assert "the relay did not start" in done.stderr
    assert "tests.no_such_module" in done.stderr


def test_more_workers_share_the_cores_and_end_with_the_rest(up: Up, membank: Run) -> None:
    before = up()
    after = up("--workers", "2")
    assert after == before | {"worker-2": after["worker-2"]}
    assert up() == after
    added = psutil.Process(after["worker-2"])
    cores = psutil.cpu_count(logical=False) or 1
    assert added.environ()["MEMBANK_THREADS"] == str(max(1, cores // 2))
    assert membank("down").returncode == 0
    assert wait_until(lambda: not added.is_running(), 20)


def test_data_outlives_down_and_up(home: Path, up: Up, membank: Run) -> None:
    up()
    assert membank("tenant", "add", "kept").returncode == 0
    assert membank("down").returncode == 0
    assert Processes(home).strays() == []
    up()
    assert "exists already" in membank("tenant", "add", "kept").stderr


@pytest.mark.parametrize("killed", [("postgres",), ("worker", "relay"), tuple(sorted(READY))])
def test_down_leaves_no_process_also_after_kills(
    home: Path, up: Up, membank: Run, killed: tuple[str, ...]
) -> None:
    running = up()
    everything = families(running)
    for name in killed:
        os.kill(running[name], signal.SIGKILL)
    said(membank("down", "--json"))
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert alive == []
    assert Processes(home).strays() == []


def test_a_temporary_stack_ends_with_the_run_that_is_told_to_end(tmp_path: Path) -> None:
    code = (
        "from app.demo.sample import temporary_stack\n"
        "from app.local import stack\n"
        f"stack.SERVICES.update({STUBS!r})\n"
        "with temporary_stack(lambda line: print(line, flush=True), stack.SERVICES):\n"
        "    print('made', flush=True)\n"
        "    input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "made\n" in iter(process.stdout.readline, "")
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("membank-demo-*"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]


def test_servers_of_the_user_are_used_and_not_started(
    home: Path, up: Up, membank: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = up()
    status = said(membank("status", "--json"))
    with monkeypatch.context() as patch:
        patch.setenv("MEMBANK_HOME", str(tmp_path / "other"))
        patch.setenv("MEMBANK_DATABASE_URL", EmbeddedPostgres(home, Processes(home)).url)
        patch.setenv("MEMBANK_REDIS_URL", status["redis_url"])
        settings.cache_clear()
        try:
            assert set(up()) == set(STUBS)
            assert membank("doctor").returncode == 0
        finally:
            assert membank("down").returncode == 0
    settings.cache_clear()
    assert up() == ours
