"""How many threads compute, and how they wait for one another.

OpenMP, which torch and our compiled kernels share, takes both from the environment, once, when
torch loads it. So `app/__init__.py` calls `settle`, before anything of ours imports torch.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

SPINS = 1000
"""How often a thread looks for work before it sleeps. OpenMP's own 300,000 take milliseconds, on a
core that the thread it waits for may need (docs/decisions/0024)."""


def settle() -> None:
    """Tell OpenMP, unless the user has, through the environment; child processes inherit it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def cores() -> int:
    """Whole cores that this process may keep busy: at least 1, at most those it is bound to, and
    no more than its quota pays for."""
    most = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        most = min(most, len(os.sched_getaffinity(0)))
    paid = quota()
    return max(1, most if paid is None else min(most, int(paid)))


def quota(
    groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Seconds of processor time a second that the control groups of this process allow, v1 or v2.

    None where they set no limit, or there are none. A group is held to its parents' limits too.
    """
    limits = (_limit(folder) for folder in _folders(groups, process))
    return min((limit for limit in limits if limit is not None), default=None)


def _folders(groups: Path, process: Path) -> Iterator[Path]:
    """A container may see its own group as the root, under whatever name `process` gives it."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu", controllers) if controllers else (".", "unified")
        group = PurePosixPath(path.lstrip("/"))
        yield from (groups / name / part for name in names for part in (group, *group.parents))


def _limit(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            share, period = " ".join((folder / name).read_text() for name in names).split()
            return int(share) / int(period) if int(share) > 0 else None
        except (OSError, ValueError, ZeroDivisionError):
            continue  # no such file, or "max"
    return None
