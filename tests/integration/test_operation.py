"""Health, metrics, request lines and traces, over a real Postgres."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog
from fastapi.testclient import TestClient
from starlette.requests import Request

from app.api import server
from app.api.application import create
from app.api.http.caller import MayRead
from app.api.operation import health
from app.errors import UnavailableError
from app.queue import status
from tests import edges
from tests.conftest import PROFILE, Company
from tests.edges import issue


class Generates:
    """An engine that is never asked."""

    def __call__(self, *_: object) -> Any:
        raise AssertionError("nothing is asked here")

    def stats(self) -> dict[str, int]:
        return {"running": 3, "waiting": 2}


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(health, "loaded", lambda: True)
    monkeypatch.setattr(health, "_valkey", lambda: None)
    monkeypatch.setattr(health, "profile", lambda: type("P", (), {"id": PROFILE}))
    app = create(Generates())

    @app.get("/v1/things/{name}")
    def thing(name: str, who: MayRead, request: Request) -> dict[str, str]:
        if name == "broken":
            raise RuntimeError("the text of a question")
        return {"name": name}

    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def checks(client: TestClient) -> tuple[int, dict[str, str]]:
    said = client.get("/health/ready")
    return said.status_code, said.json()["checks"]


def test_a_service_whose_parts_are_all_there_is_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    names = ("models", "database", "migration", "isolation", "queue")
    assert checks(client) == (200, dict.fromkeys(names, "good"))


def test_ready_names_the_check_that_fails_and_tells_the_log_alone_why(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "loaded", lambda: False)
    with structlog.testing.capture_logs() as lines:
        said = client.get("/health/ready")
    assert said.status_code == 503
    assert said.json()["checks"]["models"] == "bad"
    assert "not loaded" not in said.text
    assert [(line["check"], line["reason"]) for line in lines if "check" in line] == [
        ("models", "UnavailableError: the models are not loaded yet")
    ]


def test_a_table_without_policies_is_a_fault_of_isolation(
    own_database: str,
) -> None:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("ALTER TABLE document DISABLE ROW LEVEL SECURITY")
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    found = health._database()
    assert "document" in found["isolation"]
    assert "0000" in found["migration"]


def test_a_look_that_hangs_is_a_fault_in_time_and_is_not_begun_twice(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Event(), []

    def hangs() -> None:
        begun.append(1)
        release.wait(60)

    monkeypatch.setattr(health, "_LIMIT", 0.1)
    probe = health.Probe("hanging", hangs, 0.0)
    monkeypatch.setattr(
        client.app.state.health,
        "_probes",
        [  # type: ignore[attr-defined]
            *client.app.state.health._probes[:2],
            probe,
        ],
    )  # type: ignore[attr-defined]
    try:
        assert checks(client)[1]["queue"] == "bad"
        assert checks(client)[0] == 503
        assert begun == [1]
    finally:
        release.set()
        probe.close()


def test_old_work_that_nobody_takes_is_a_fault_and_old_work_in_hand_is_none(
    company: Company, superuser: Any
) -> None:
    company.store("a", "one\n\ntwo")
    superuser.execute(
        "UPDATE outbox SET created_at = now() - interval '1 hour',"
        " not_before = now() - interval '1 hour'"
    )
    waiting = edges.backlog(PROFILE)
    assert waiting["pending"] == 2
    assert waiting["oldest_seconds"] >= 3600
    assert "due for" in health._stands(waiting)
    superuser.execute("UPDATE tenant SET paused = true")
    assert health._stands(edges.backlog(PROFILE)) == ""
    superuser.execute("UPDATE tenant SET paused = false")
    superuser.execute("UPDATE outbox SET lease_until = now() + interval '1 minute'")
    assert health._stands(edges.backlog(PROFILE)) == ""
    assert edges.backlog("another")["pending"] == 0


def test_a_request_leaves_one_line_without_its_query_key_or_path_values(
    client: TestClient, company: Company
) -> None:
    company.reader("alice")
    token = issue(company.name, "alice").token
    with structlog.testing.capture_logs() as lines:
        said = client.get(
            "/v1/things/my-secret?q=my-question", headers={"Authorization": f"Bearer {token}"}
        )
    assert said.status_code == 200
    [line] = [line for line in lines if line["event"] == "request"]
    assert line["route"] == "/v1/things/{name}"
    assert (line["method"], line["status"], line["tenant"]) == ("GET", 200, company.name)
    assert line["request_id"] == said.headers["x-request-id"]
    assert line["ms"] > 0
    assert not [word for word in ("my-secret", "my-question", token) if word in json.dumps(line)]


def test_every_failure_is_logged_with_its_status(client: TestClient, company: Company) -> None:
    company.reader("alice")
    token = issue(company.name, "alice").token
    with structlog.testing.capture_logs() as lines:
        client.get("/nowhere/at-all")
        client.get("/v1/things/a")
        client.get("/v1/things/broken", headers={"Authorization": f"Bearer {token}"})
    found = [(line["route"], line["status"]) for line in lines if line["event"] == "request"]
    assert found == [
        ("unknown", 404),
        ("/v1/things/{name}", 401),
        ("/v1/things/{name}", 500),
    ]


def test_metrics_count_by_route_and_tell_engine_and_queue(
    client: TestClient, company: Company
) -> None:
    company.store("a", "one\n\ntwo")
    client.get("/nowhere/1")
    client.get("/v1/things/a")
    said = client.get("/metrics")
    assert said.headers["content-type"].startswith("text/plain")
    lines = said.text.splitlines()
    assert "membank_engine_running 3.0" in lines
    assert "membank_engine_waiting 2.0" in lines
    assert "membank_queue_pending 2.0" in lines
    assert any(line.startswith('membank_cache_hits{tier="disk"}') for line in lines)
    counted = [line for line in lines if line.startswith("membank_requests_total{")]
    assert any('route="/v1/things/{name}",status="401"' in line for line in counted)
    assert any('route="unknown",status="404"' in line for line in counted)
    assert company.name not in said.text
    assert "nowhere" not in said.text


def test_metrics_are_shown_while_the_database_is_away(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> dict[str, float]:
        raise UnavailableError("away")

    monkeypatch.setattr(status, "backlog", away)
    said = client.get("/metrics")
    assert said.status_code == 200
    assert "membank_queue" not in said.text
    assert "membank_engine_running" in said.text


def test_what_was_forgotten_is_swept_from_the_tiers_also_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, looks = threading.Event(), []

    class Tiers:
        def sweep(self, over: threading.Event) -> int:
            looks.append(over)
            if len(looks) == 1:
                raise UnavailableError("the database is away")
            over.set()
            return 2

    monkeypatch.setattr(server, "cache", Tiers)
    monkeypatch.setattr(server.settings(), "reconcile_seconds", 0.001)
    with structlog.testing.capture_logs() as lines:
        server.sweep(stop)
    assert [(line["log_level"], line.get("entries")) for line in lines] == [
        ("warning", None),
        ("info", 2),
    ]


def test_what_machines_ask_every_second_is_no_line_of_level_info(client: TestClient) -> None:
    with structlog.testing.capture_logs() as lines:
        client.get("/health/live")
        client.get("/metrics")
    assert [(line["route"], line["log_level"]) for line in lines if "route" in line] == [
        ("/health/live", "debug"),
        ("/metrics", "debug"),
    ]
