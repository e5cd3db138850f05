"""How many threads compute and how they wait: settled before torch is loaded, in every process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.local.stack import SERVICES
from app.process import threads

ROOT = Path(__file__).parents[2]


def quota(folder: Path, process: str, files: Mapping[str, str]) -> float | None:
    """Of a process in the groups of `process`, where the file system of groups has these files."""
    for name, content in files.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    (folder / "process").write_text(process)
    return threads.quota(folder / "groups", folder / "process")


V1 = "12:devices:/a\n4:cpu,cpuacct:/a/b\n3:cpuset:/c\n0::/system\n"


@pytest.mark.parametrize(
    ("process", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        # A container that sees its own group as the root, under the host's name for it.
        ("0::/host/pod\n", {"cpu.max": "400000 200000"}, 2.0),
        ("0::/a/b\n", {"a/c/cpu.max": "100000 100000"}, None),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "250000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 2.5),
        (
            V1,
            {
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, None),
        # The group that a process has for devices or cores says nothing of time.
        (V1, {"cpu/c/cpu.cfs_quota_us": "100000", "cpu/c/cpu.cfs_period_us": "100000"}, None),
        (V1, {"unified/system/cpu.max": "100000 100000"}, 1.0),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_a_quota_is_the_least_of_a_group_and_its_parents(
    process: str, files: Mapping[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert quota(tmp_path, process, files) == expected


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert threads.quota(tmp_path, tmp_path / "process") is None


@pytest.mark.parametrize(("paid", "expected"), [(None, 4), (8.0, 4), (3.9, 3), (0.5, 1)])
def test_no_more_cores_than_there_are_and_than_are_paid_for(
    paid: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "quota", lambda: paid)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert threads.cores() == expected


def test_a_process_that_is_bound_to_one_core_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "quota", lambda: None)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert threads.cores() == 1


@pytest.mark.parametrize(
    ("before", "paid", "expected"),
    [
        ({}, None, {"GOMP_SPINCOUNT": str(threads.SPINS)}),
        ({}, 1.0, {"GOMP_SPINCOUNT": str(threads.SPINS), "OMP_NUM_THREADS": "1"}),
        ({"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "3"}, 1.0, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, {}),
    ],
)
def test_what_the_user_has_set_stays(
    before: dict[str, str],
    paid: float | None,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = dict(before)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(threads, "quota", lambda: paid)
    threads.settle()
    assert environment == before | expected


def environment_of(**more: str) -> dict[str, str]:
    """This process's, without what was settled in it."""
    settled = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {k: v for k, v in os.environ.items() if k not in settled} | more


MODULES = [*SERVICES.values(), "app.cli", "benchmarks.serve", "app.memory.encode"]


@pytest.mark.parametrize("module", MODULES)
def test_it_is_settled_before_torch_is_loaded(module: str, tmp_path: Path) -> None:
    """In place of torch stands what says with which environment it was loaded, and ends."""
    (tmp_path / "torch.py").write_text(
        "import os; print(os.environ['GOMP_SPINCOUNT'], flush=True); os._exit(0)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch"],
        env=environment_of(PYTHONPATH=path, MEMBANK_REDIS_URL="redis://127.0.0.1:1/0"),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(threads.SPINS), done.stderr


def test_torchs_own_openmp_reads_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import app, torch; print(torch.get_num_threads())"],
        env=environment_of(OMP_DISPLAY_ENV="VERBOSE", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{threads.SPINS}'" in done.stderr
    assert done.stdout.strip() == "1"
