"""What README says can be done can be done."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_library_example_prints_the_fact(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"## As a library.*?```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert "orange" in capsys.readouterr().out


def test_every_command_that_is_named_exists() -> None:
    from typer.main import get_command

    from app.cli import app
    from app.commands.tenants import banks, principals, tenants

    known = set(get_command(app).commands)
    named = set(re.findall(r"^ *membank ([a-z]+)", README, re.MULTILINE))
    assert named
    assert named <= known
    assert all(group.registered_commands for group in (tenants, principals, banks))


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^ +|`)make ([a-z]+)", README, re.MULTILINE)) <= targets
