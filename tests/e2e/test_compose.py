"""The documented steps of Docker Compose, without Docker: each service is started with exactly the
environment that docker-compose.yml makes of .env.example."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from app.local.postgres import EmbeddedPostgres
from app.local.processes import Processes, wait_until
from app.local.valkey import EmbeddedValkey
from app.settings import settings
from tests.compose import ROOT, compose, environment, example
from tests.serving import free_port


@contextmanager
def servers(home: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedValkey]]:
    """A Postgres without roles and a Valkey, as new volumes have them."""
    processes = Processes(home)
    postgres, valkey = EmbeddedPostgres(home, processes), EmbeddedValkey(home, processes)
    try:
        postgres.start()
        valkey.start()
        yield postgres, valkey
    finally:
        valkey.stop()
        postgres.stop()
        processes.end_strays()


def moved(given: dict[str, str], places: dict[str, str]) -> dict[str, str]:
    """An environment with hosts and volumes of the containers replaced by those of the test."""
    found = {}
    for name, value in given.items():
        for there, here in places.items():
            value = value.replace(there, here)
        found[name] = value
    return found


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def ends(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(60)


@pytest.mark.timeout(600)
def test_the_example_through_the_compose_file_gives_services_that_get_ready(tmp_path: Path) -> None:
    services, values = compose()["services"], example()
    port = free_port()
    with servers(tmp_path / "servers") as (postgres, valkey), ExitStack() as stack:
        host = postgres.url.partition("@")[2].partition("/")[0]
        values["POSTGRES_PASSWORD"] = postgres.url.partition("postgres:")[2].partition("@")[0]
        places = {
            "postgres:5432": host,
            "redis://valkey:6379/0": valkey.url,
            "/models": str(settings().models.expanduser()),
            "/keyring": str(tmp_path / "keyring"),
        }

        def started(name: str, command: list[str]) -> subprocess.Popen[str]:
            given = moved(environment(services[name], values), places)
            if "MEMBANK_API_PORT" in given:
                given |= {"MEMBANK_API_PORT": str(port), "MEMBANK_API_HOST": "127.0.0.1"}
            folder = tmp_path / name
            folder.mkdir()
            # Of this machine's environment only what the image has too.
            given |= {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
            with (tmp_path / f"{name}.log").open("w") as log:
                return subprocess.Popen(command, env=given, cwd=folder, stderr=log, text=True)

        def told(name: str) -> str:
            return (tmp_path / f"{name}.log").read_text()

        assert services["migrate"]["command"] == ["membank", "migrate"]
        migrate = started("migrate", [sys.executable, "-m", "app.cli", "migrate"])
        assert migrate.wait(120) == 0, told("migrate")
        running = {}
        for name in ("worker", "relay", "api"):
            python, *arguments = services[name]["command"]
            assert python == "python"
            running[name] = started(name, [sys.executable, *arguments])
            stack.callback(ends, running[name])

        def settled(ready: Callable[[], bool]) -> Callable[[], bool]:
            return lambda: ready() or any(p.poll() is not None for p in running.values())

        address = f"http://127.0.0.1:{port}"
        wait_until(settled(lambda: answers(f"{address}/health/ready")), 400)
        ended = {name: told(name) for name, p in running.items() if p.poll() is not None}
        assert not ended
        assert answers(f"{address}/health/ready"), told("api")
