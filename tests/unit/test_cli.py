"""The command itself: what it says of itself."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.local.stack import Step

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_version_is_that_of_the_package() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert told.exit_code == 0
    assert told.output.split() == [
        "membank",
        tomllib.loads(PROJECT.read_text())["project"]["version"],
    ]


def test_without_a_command_it_says_which_there_are_and_is_wrong_usage() -> None:
    told = CliRunner().invoke(app, [])
    assert told.exit_code == 2
    assert "ingest" in told.output


class Running:
    """A stack that runs already."""

    def servers(self) -> list[Step]:
        return [Step("postgres", "pid 7")]

    def workers(self, count: int) -> list[Step]:
        return [Step("worker", f"{count} of them")]

    def service(self, name: str) -> Step:
        return Step(name, "pid 9")

    def addresses(self) -> dict[str, str]:
        return {"api_url": "http://127.0.0.1:8123"}


def test_up_prints_where_the_service_is_and_what_to_do_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.local.stack.Stack", Running)
    told = CliRunner().invoke(app, ["up"]).output
    assert "http://127.0.0.1:8123/v1" in told
    assert "membank tenant add" in told
    assert "worker" in told
