"""`membank up`, `status`, `down`: real processes, started once, ended always."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.local.processes import Processes, wait_until

NAMES = {"postgres", "valkey", "worker", "relay", "api"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("stack") / "home with a space"
    yield place
    run(place, "down")


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMBANK_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=environment | {"MEMBANK_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def up(home: Path, *options: str) -> dict[str, Any]:
    done = run(home, "up", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def pids(status: dict[str, Any]) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in status["processes"]}


def test_before_the_first_start_status_says_what_to_do(home: Path) -> None:
    done = run(home, "status")
    assert done.returncode == 0
    assert "membank up" in done.stdout
    assert not json.loads(run(home, "status", "--json").stdout)["running"]


def test_down_before_the_first_start_is_harmless(home: Path) -> None:
    assert run(home, "down").returncode == 0


def test_a_second_up_starts_nothing_new(home: Path) -> None:
    first = up(home)
    assert set(pids(first)) == NAMES
    assert first["running"]
    for process in first["processes"]:
        assert psutil.pid_exists(process["pid"])
        assert Path(process["log"]).stat().st_size >= 0
    assert pids(up(home)) == pids(first)


def test_doctor_finds_nothing_wrong(home: Path) -> None:
    up(home)
    done = run(home, "doctor", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["good"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_was_killed_is_started_again_and_the_rest_left_alone(home: Path, name: str) -> None:
    before = pids(up(home))
    os.kill(before[name], signal.SIGKILL)
    assert wait_until(lambda: Processes(home).get(name) is None, 60)
    shown = json.loads(run(home, "status", "--json").stdout)
    assert name not in pids(shown)
    after = pids(up(home))
    assert set(after) == NAMES
    assert {n for n in NAMES if after[n] != before[n]} == {name}


def test_more_workers_share_the_cores_and_end_with_the_rest(home: Path) -> None:
    before = pids(up(home))
    after = pids(up(home, "--workers", "2"))
    assert after == before | {"worker-2": after["worker-2"]}
    assert pids(up(home)) == after
    added = psutil.Process(after["worker-2"])
    cores = psutil.cpu_count(logical=False) or 1
    assert added.environ()["MEMBANK_THREADS"] == str(max(1, cores // 2))
    assert run(home, "down").returncode == 0
    assert wait_until(lambda: not added.is_running(), 20)


def test_data_outlives_down_and_up(home: Path) -> None:
    up(home)
    assert run(home, "tenant", "add", "kept").returncode == 0
    assert run(home, "down").returncode == 0
    assert Processes(home).strays() == []
    up(home)
    assert "exists already" in run(home, "tenant", "add", "kept").stderr


@pytest.mark.parametrize("killed", [("postgres",), ("worker", "relay"), tuple(sorted(NAMES))])
def test_down_leaves_no_process_also_after_kills(home: Path, killed: tuple[str, ...]) -> None:
    running = pids(up(home))
    everything = [
        p
        for pid in running.values()
        for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ]
    for name in killed:
        os.kill(running[name], signal.SIGKILL)
    done = run(home, "down", "--json")
    assert done.returncode == 0, done.stderr
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert alive == []
    assert Processes(home).strays() == []


def test_a_temporary_stack_ends_with_the_run_that_is_told_to_end(tmp_path: Path) -> None:
    code = (
        "from app.demo.sample import temporary_stack\n"
        "with temporary_stack(lambda line: print(line, flush=True)):\n"
        "    print('made', flush=True)\n"
        "    input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if not k.startswith("MEMBANK_")}
        | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "made\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("membank-demo-*"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]


def test_servers_of_the_user_are_used_and_not_started(home: Path, tmp_path: Path) -> None:
    running = up(home)
    from app.local.postgres import EmbeddedPostgres

    administrator = EmbeddedPostgres(home, Processes(home)).url
    other = tmp_path / "other"
    environment = os.environ | {
        "MEMBANK_HOME": str(other),
        "MEMBANK_DATABASE_URL": administrator,
        "MEMBANK_REDIS_URL": running["redis_url"],
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    try:
        done = command("up", "--json")
        assert done.returncode == 0, done.stderr
        assert set(pids(json.loads(done.stdout))) == {"worker", "relay", "api"}
        assert command("doctor").returncode == 0
    finally:
        assert command("down").returncode == 0
    assert set(pids(up(home))) == NAMES
