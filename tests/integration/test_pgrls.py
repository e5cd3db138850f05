"""What an analyser of row-level security says of the schema, but for what is so by design.

It asks in its own words what app/db/isolation.py asks in ours.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Why each of these is no fault here stands in docs/production/threat-model.md.
BY_DESIGN = {
    *("SEC005", "SEC008", "SEC010", "SEC028", "SEC038"),
    *("SEC013", "SEC014", "SEC018", "PERF001", "PERF003", "VIEW002"),
}


def pgrls(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "pgrls"
    return subprocess.run(
        [program, *arguments, "--database-url", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def findings(url: str) -> set[tuple[str, str]]:
    done = pgrls(url, "lint", "--format", "json")
    told: dict[str, Any] = json.loads(done.stdout)
    return {(found["rule_id"], str(found["location"])) for found in told["violations"]}


def test_it_finds_nothing_but_what_is_by_design(database: str) -> None:
    found = findings(database)
    assert {rule for rule, _ in found} - {"SEC001"} <= BY_DESIGN
    assert [where for rule, where in found if rule == "SEC001"] == ["public.alembic_version"]


def test_every_rule_that_is_set_aside_is_needed_and_explained(database: str) -> None:
    page = (ROOT / "docs/production/threat-model.md").read_text()
    assert {rule for rule, _ in findings(database)} - {"SEC001"} == BY_DESIGN
    assert all(rule in page for rule in BY_DESIGN)


@pytest.mark.parametrize("mode", ["anon", "cross-tenant", "write", "reachability", "escalation"])
def test_it_proves_no_leak(database: str, mode: str) -> None:
    done = pgrls(database, "verify", "--mode", mode)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEAK" not in done.stdout
