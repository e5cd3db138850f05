"""A short run of random questions against the model of rights: the long one is `make rights`."""

import subprocess
import sys

import pytest


@pytest.mark.timeout(280)
def test_random_questions_bring_what_the_model_of_rights_says() -> None:
    # A stack and settings of its own, in a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "tests.rights.run", "--questions", "150", "--seed", "short"],
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 differences" in done.stdout
