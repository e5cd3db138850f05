"""What every request to the service is held to, before any model is asked."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from app.access.quota import Quota
from app.api.http import limits
from app.api.http.caller import MayRead, MayWrite
from app.api.http.errors import handle_errors
from app.api.http.limits import hold
from app.api.http.rates import Rate, Rates
from app.api.openai import models
from app.db.session import Asker, transaction
from app.settings import settings
from tests.conftest import Company, begin_request
from tests.edges import issue, set_quota

router = APIRouter()


def adapter_of(asker: Asker, model: str) -> str | None:
    with transaction(asker) as connection:
        return models.chosen(connection, asker, model)[1]


class Thing(BaseModel):
    name: str


@router.post("/things")
def make(thing: Thing, who: MayWrite) -> dict[str, Any]:
    return {"name": thing.name, "by": who.principal}


@router.post("/questions")
def ask(who: MayRead) -> dict[str, Any]:
    begin_request(who.asker)
    return {}


@router.post("/fails")
def fail() -> dict[str, Any]:
    raise RuntimeError("the secret is 774411")


@router.post("/uploads", max_body_size=4000)
def upload(thing: Thing) -> int:
    return len(thing.name)


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(settings(), "max_request_bytes", 1000)
    app = FastAPI()
    handle_errors(app)
    hold(app)
    app.include_router(router)
    app.include_router(models.router)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def alice(company: Company, client: TestClient) -> Callable[..., httpx.Response]:
    """Posts as a principal who may write."""
    company.reader("alice")
    return poster(client, issue(company.name, "alice", ["read", "write"]).token)


def poster(client: TestClient, token: str) -> Callable[..., httpx.Response]:
    def post(path: str, body: object = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post(path, json=body, headers={"Authorization": f"Bearer {token}", **named})

    return post


class TestRate:
    def test_one_too_many_is_told_when_to_come_again(
        self, alice: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lefts = iter([Rate(2, 1, 60.0), Rate(2, 0, 60.0), Rate(2, 0, 59.0, 29.5)])
        monkeypatch.setattr(Rates, "take", lambda *_: next(lefts))
        answers = [alice("/questions") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert remaining == ["1", "0", "0"]
        assert answers[-1].headers["retry-after"] == "30"
        assert answers[-1].headers["x-ratelimit-limit-requests"] == "2"
        assert answers[-1].headers["x-ratelimit-reset-requests"] == "59.000s"
        assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"

    def test_where_no_rate_is_set_none_is_told(self, alice: Callable[..., httpx.Response]) -> None:
        assert not [name for name in alice("/questions").headers if "ratelimit" in name]

    def test_the_days_quota_says_how_long_the_day_is(
        self, company: Company, alice: Callable[..., httpx.Response]
    ) -> None:
        set_quota(company.tenant, Quota(requests=1))
        assert alice("/questions").status_code == 200
        refused = alice("/questions")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert refused.headers["x-should-retry"] == "false"


class TestSize:
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_that_is_too_large_is_refused_in_openais_shape(
        self, client: TestClient, chunked: bool
    ) -> None:
        body = b'{"name": "' + b"a" * 2000 + b'"}'
        content = iter([body[:500], body[500:]]) if chunked else body
        headers = {"Content-Type": "application/json"}
        refused = client.post("/things", content=content, headers=headers)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"
        assert refused.headers["x-request-id"]
        assert client.post("/uploads", content=body, headers=headers).json() == 2000

    def test_a_route_that_takes_more_has_a_limit_of_its_own(self, client: TestClient) -> None:
        assert client.post("/uploads", json={"name": "a" * 5000}).status_code == 413

    def test_a_body_that_stands_still_is_given_up(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
        pieces: list[Any] = [{"type": "http.request", "body": b"{", "more_body": True}]
        sent: list[Any] = []

        async def receive() -> Any:
            if not pieces:
                await asyncio.Event().wait()
            return pieces.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/things",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        asyncio.run(client.app(scope, receive, send))
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


class TestNumber:
    @pytest.mark.parametrize("path", ["/things", "/nowhere", "/fails"])
    def test_every_answer_has_that_of_its_request(self, client: TestClient, path: str) -> None:
        given = client.post(path, headers={"x-request-id": "my-7"})
        assert given.headers["x-request-id"] == "my-7"
        assert "774411" not in given.text
        assert given.json()["error"]["message"]

    @pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\x07"])
    def test_one_that_is_none_is_replaced(self, client: TestClient, given: str) -> None:
        number = client.post("/things", headers={"x-request-id": given}).headers["x-request-id"]
        assert number.startswith("req_")


class TestModels:
    def test_are_the_banks_that_the_caller_may_read(
        self, company: Company, client: TestClient, new_company: Callable[[str], Company]
    ) -> None:
        from tests.edges import add_bank

        new_company("meadow")
        add_bank(company.name, "closed", company.bank.profile, "{}", closed=True)
        add_bank(company.name, "a@b", company.bank.profile, "{}")
        company.reader("alice")
        headers = {"Authorization": f"Bearer {issue(company.name, 'alice').token}"}

        def get(path: str) -> httpx.Response:
            return client.get(path, headers=headers)

        listed = get("/v1/models").json()
        assert [model["id"] for model in listed["data"]] == ["a@b", "handbook"]
        assert {model["owned_by"] for model in listed["data"]} == {company.name}
        assert all(model["created"] > 1_700_000_000 for model in listed["data"])
        assert get("/v1/models/handbook").json() == listed["data"][1]
        for good in ("handbook@none", "handbook@auto", "a@b", "a@b@none"):
            assert get(f"/v1/models/{good}").json()["id"] == good
        for bad in ("closed", "nothing", "a@c", "handbook@", "handbook@../x", "handbook@none@none"):
            refused = get(f"/v1/models/{bad}")
            assert (bad, refused.status_code) == (bad, 404)
            assert refused.json()["error"]["code"] == "model_not_found"
        assert client.get("/v1/models").status_code == 401

    def test_an_adapter_is_chosen_by_its_name_among_those_of_the_folder(
        self, company: Company, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from app.access.identity import identify
        from app.errors import ModelNotFoundError

        folder = tmp_path / "adapters"
        (folder / "good").mkdir(parents=True)
        (folder / "good" / "memory.safetensors").touch()
        (folder / "empty").mkdir()
        (tmp_path / "memory.safetensors").touch()
        monkeypatch.setattr(settings(), "adapters", folder)
        company.reader("alice")
        who = identify(issue(company.name, "alice").token)
        assert adapter_of(who.asker, "handbook@good") == str(folder / "good")
        assert adapter_of(who.asker, "handbook@none") == "none"
        assert adapter_of(who.asker, "handbook") is None
        for bad in ("empty", "..", ".", "", f"{folder}/good", "good/", "good\x00"):
            with pytest.raises(ModelNotFoundError):
                adapter_of(who.asker, f"handbook@{bad}")
