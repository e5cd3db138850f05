"""Calls of every kind to every route: a short form of `make fuzz`."""

from pathlib import Path

from app.ingest.command import run as ingest
from app.local.stack import Stack
from tests.e2e.conftest import make_tenant
from tests.fuzz.run import run

FACT = "# Annual Leave\n\nEvery employee of Gale has 21 days of annual leave.\n"


def test_no_call_fails_and_each_is_answered_as_it_is_described(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "leave.md").write_text(FACT)
    make_tenant("gale", ("alice", []), ("hana", ["hr"]))
    ingest([tmp_path / "leave.md"], "gale", "handbook", ("everyone",), False, True)
    seen = run("gale", "handbook", calls=200, seed=7)
    assert not seen.faults, "\n".join(seen.lines())
    done = {route for route, status in seen.statuses if status < 300}
    assert {"POST /v1/files", "POST /v1/chat/completions", "POST /v1/membank/erasure"} <= done
    assert len({route for route, _ in seen.statuses}) == 51
