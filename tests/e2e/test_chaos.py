"""A short chaos run: the long one is `make chaos`."""

import subprocess
import sys

import pytest


@pytest.mark.timeout(280)
def test_nothing_is_lost_doubled_or_left_behind_over_kills() -> None:
    # A stack and settings of its own, in a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.run", "--kills", "6", "--seed", "short"],
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "FAULT" not in done.stdout
