"""One real stack for the end-to-end tests: servers, worker, relay, HTTP service, default models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.demo.sample import temporary_stack
from app.local.stack import SERVICES, Stack
from app.runtime.identity import profile
from tests.edges import add_bank, add_principal, add_tenant
from tests.serving import free_port

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stacks that are started count for the test that comes first."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        # What a killed worker had in hand is free again after this long: a test waits for it.
        patch.setenv("MEMBANK_LEASE_SECONDS", "6")
        # Nobody else takes it while the service is down.
        patch.setenv("MEMBANK_API_PORT", str(free_port()))
        with temporary_stack(lambda _: None, SERVICES) as running:
            yield running


@pytest.fixture(scope="session")
def url(stack: Stack) -> str:
    """Of the stack's HTTP service, which whoever ends it starts again."""
    return str(stack.addresses()["api_url"])


@pytest.fixture(scope="session")
def membank_process() -> Run:
    """Run the command as a user does, in a process of its own; its output is text."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | environment,
            check=False,
        )

    return run


@pytest.fixture
def membank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, which has loaded torch and the models already.

    An exception that the command lets through is the test's.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["membank", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def membank_json(membank: Run) -> Callable[..., Any]:
    """Run a command that must succeed, with --json."""

    def run(*arguments: str) -> Any:
        done = membank(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def make_tenant(name: str, *principals: tuple[str, list[str]]) -> None:
    """A tenant with a bank `handbook` and principals in groups."""
    add_tenant(name)
    for principal, groups in principals:
        add_principal(name, principal, groups)
    add_bank(name, "handbook", profile().id, profile().json())
