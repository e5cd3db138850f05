"""Processes of one home: records that tell the truth, and ends that leave nothing behind."""

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from app.errors import UnavailableError
from app.local.processes import MARKER, Processes, wait_until

SLEEP = ["sleep", "600"]
# Says "ready" once it ignores SIGTERM, and has a child that does not.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: (print("interrupted", flush=True), sys.exit()))
print("ready", flush=True)
while True:
    signal.pause()
"""
# As between the threads of a server that ends, only for longer.
OUTLIVED = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
print("ready", child.pid, flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path / "home")
    yield processes
    processes.end_strays()


def record(processes: Processes, name: str) -> Path:
    return processes.home / "run" / f"{name}.json"


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def has_name(pid: int, name: str) -> bool:
    return psutil.Process(pid).name() == name


def run_to_end(processes: Processes, name: str, script: str) -> str:
    processes.start(name, ["sh", "-c", script])
    assert wait_until(lambda: processes.get(name) is None, 60)
    return processes.tail(name)


def test_started_process_is_found_by_another_reader_of_the_home(processes: Processes) -> None:
    started = processes.start("worker", SLEEP)
    other = Processes(processes.home)
    assert other.get("worker") == started
    assert other.all() == [started]


def test_second_start_returns_the_running_process(processes: Processes) -> None:
    assert processes.start("worker", SLEEP) == processes.start("worker", SLEEP)


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is turned inside psutil")
def test_a_clock_that_is_put_right_loses_no_process(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psutil import _pslinux

    started, booted = processes.start("worker", SLEEP), psutil.boot_time()
    monkeypatch.setattr(_pslinux, "boot_time", lambda: booted + 3600.0)
    assert psutil.Process(started.pid).create_time() > booted + 3600.0
    assert processes.get("worker") == started
    assert processes.stop("worker")
    assert wait_until(lambda: not psutil.pid_exists(started.pid), 20)


def test_record_is_private_and_written_whole(processes: Processes) -> None:
    started = processes.start("worker", SLEEP)
    path = record(processes, "worker")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "name": "worker",
        "pid": started.pid,
        "created": started.created,
        "log": str(started.log),
    }
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_process_has_a_session_of_its_own_and_no_input(processes: Processes) -> None:
    started = processes.start("worker", SLEEP)
    assert os.getsid(started.pid) == started.pid
    assert run_to_end(processes, "reader", "cat; echo over") == "over"


def test_process_gets_the_environment_and_the_marker(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_PARENT", "one")
    processes.start(
        "worker", ["sh", "-c", f"echo $FROM_PARENT $FROM_CALL ${MARKER}"], {"FROM_CALL": "two"}
    )
    assert wait_until(lambda: processes.get("worker") is None, 60)
    assert processes.tail("worker") == f"one two {processes.home}"


def test_ended_child_that_nobody_collected_is_not_alive(processes: Processes) -> None:
    run_to_end(processes, "worker", "true")
    assert processes.all() == []


def test_reused_pid_is_not_taken_for_the_recorded_process(processes: Processes) -> None:
    started = processes.start("worker", SLEEP)
    rewrite(record(processes, "worker"), created=started.created - 60)
    assert processes.get("worker") is None
    assert processes.all() == []
    assert processes.stop("worker") is False
    assert psutil.pid_exists(started.pid)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"pid": "x", "created": 1}',
        '{"pid": -1, "created": 1}',
        "\x00",
    ],
)
def test_corrupt_record_counts_as_absent(processes: Processes, text: str) -> None:
    first = processes.start("worker", SLEEP)
    record(processes, "worker").write_text(text)
    assert processes.get("worker") is None
    assert processes.all() == []
    assert processes.start("worker", SLEEP) != first


def test_stop_ends_the_process_and_removes_the_record(processes: Processes) -> None:
    processes.start("worker", SLEEP)
    assert processes.stop("worker") is True
    assert processes.strays() == []
    assert not record(processes, "worker").exists()
    assert processes.stop("worker") is False


def test_process_whose_first_thread_ended_before_the_others_is_alive(processes: Processes) -> None:
    started = processes.start("worker", [sys.executable, "-c", OUTLIVED])
    assert wait_until(lambda: processes.tail("worker") == "ready", 60)
    process = psutil.Process(started.pid)
    assert wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, 60)
    assert processes.get("worker") == started
    assert processes.stop("worker") is True
    assert not psutil.pid_exists(started.pid)


def test_stop_sends_the_signal_it_was_given(processes: Processes) -> None:
    # A shell could not trap what was ignored when it began, as SIGINT is in the background.
    processes.start("worker", [sys.executable, "-c", INTERRUPTIBLE])
    assert wait_until(lambda: processes.tail("worker") == "ready", 60)
    assert processes.stop("worker", signal.SIGINT)
    assert processes.tail("worker", lines=1) == "interrupted"


def test_stop_kills_a_process_that_ignores_it_with_its_children(processes: Processes) -> None:
    processes.start("worker", [sys.executable, "-c", STUBBORN])
    assert wait_until(lambda: processes.tail("worker").startswith("ready"), 60)
    child = psutil.Process(int(processes.tail("worker").split()[1]))
    assert processes.stop("worker", timeout=0.1) is True
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert processes.strays() == []


def test_end_strays_kills_what_ignores_it_and_counts(processes: Processes) -> None:
    processes.start("worker", [sys.executable, "-c", STUBBORN])
    assert wait_until(lambda: processes.tail("worker").startswith("ready"), 60)
    assert processes.end_strays(timeout=0.1) == 2
    assert processes.strays() == []


def test_strays_of_another_home_are_left_alone(processes: Processes, tmp_path: Path) -> None:
    started = processes.start("worker", SLEEP)
    assert Processes(tmp_path / "other").end_strays() == 0
    assert processes.get("worker") == started


def test_this_process_and_its_ancestors_are_no_strays(processes: Processes) -> None:
    # The shell stands above the one that asks, and carries the marker like it.
    ask = (
        "from pathlib import Path; from app.local.processes import Processes;"
        f"print(Processes(Path({str(processes.home)!r})).strays())"
    )
    assert run_to_end(processes, "shell", f'{sys.executable} -c "{ask}"; true') == "[]"


def test_orphans_are_told_by_program_and_folder(processes: Processes, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        started = processes.start(folder.name, ["sh", "-c", f"cd '{folder}' && exec sleep 600"])
        assert wait_until(partial(has_name, started.pid, "sleep"), 60)
    processes.end_orphans("postgres", inside, signal.SIGTERM)
    assert [p.name for p in processes.all()] == ["inside", "outside"]
    processes.end_orphans("sleep", inside, signal.SIGTERM)
    assert [p.name for p in processes.all()] == ["outside"]


def test_tail_gives_the_last_lines_of_both_outputs(processes: Processes) -> None:
    tail = run_to_end(processes, "worker", "echo one; echo; echo two >&2; echo three")
    assert tail == "one\ntwo\nthree"
    assert processes.tail("worker", lines=2) == "two\nthree"
    assert processes.tail("unknown") == ""


def test_log_is_appended_to_and_private(processes: Processes) -> None:
    run_to_end(processes, "worker", "echo one")
    assert run_to_end(processes, "worker", "echo two") == "one\ntwo"
    log = processes.home / "logs" / "worker.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_command_that_is_not_there_is_named(processes: Processes) -> None:
    with pytest.raises(UnavailableError, match="worker cannot be started because /no/such/program"):
        processes.start("worker", ["/no/such/program"])
    assert processes.all() == []


def test_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/home cannot be created .*MEMBANK_HOME"):
        Processes(tmp_path / "file" / "home").start("worker", SLEEP)
