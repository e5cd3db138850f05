"""Administration over HTTP: of the caller's own tenant alone, with the scope admin, at once."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.access import keys, principals
from app.api.application import create
from app.bank.roles import BankRole
from app.db.session import Asker
from app.settings import settings
from tests import edges
from tests.conftest import Company, administer, ask, work_off
from tests.edges import add_principal, grant, issue

ROUTES = [
    ("GET", "principals"),
    ("POST", "principals"),
    ("DELETE", "principals/bob"),
    ("GET", "groups"),
    ("PUT", "groups/hr/principals/bob"),
    ("DELETE", "groups/hr/principals/bob"),
    ("GET", "banks"),
    ("GET", "banks/handbook/members"),
    ("PUT", "banks/handbook/members/everyone"),
    ("DELETE", "banks/handbook/members/everyone"),
    ("GET", "banks/handbook/documents/a/access"),
    ("PUT", "banks/handbook/documents/a/access"),
    ("GET", "keys"),
    ("POST", "keys"),
    ("DELETE", "keys/1-1"),
    ("GET", "jobs"),
    ("POST", "jobs/retry"),
    ("POST", "jobs/cancel"),
    ("POST", "jobs/discard"),
    ("GET", "quota"),
    ("GET", "usage"),
    ("GET", "audit"),
    ("POST", "erasure"),
]


class Admin:
    """A client with a key of `root` of a company, whose paths begin behind /v1/membank."""

    def __init__(self, client: TestClient, company: Company, scopes: tuple[str, ...]) -> None:
        add_principal(company.name, "root")
        self.token = issue(company.name, "root", scopes).token
        self._client = client

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return self._client.request(
            method,
            f"/v1/membank/{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )


@pytest.fixture
def client(database: str) -> Iterator[TestClient]:
    with TestClient(create(lambda *_: None)) as made:  # type: ignore[arg-type, return-value]
        yield made


@pytest.fixture
def admin(client: TestClient, company: Company) -> Admin:
    return Admin(client, company, ("read", "admin"))


def data(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["data"]


def test_the_table_of_routes_is_all_that_there_is(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = [
        (method.upper(), path)
        for path, methods in paths.items()
        if path.startswith("/v1/membank/")
        for method in methods
    ]
    assert len(described) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_is_open_without_the_scope_admin(
    client: TestClient, company: Company, method: str, path: str
) -> None:
    weak = Admin(client, company, ("read", "write"))
    body = (
        None
        if method in ("GET", "DELETE")
        else {
            "name": "x",
            "principal": "root",
            "role": "reader",
            "access": [],
            "tenant": company.name,
        }
    )
    assert weak(method, path, body).status_code == 403
    assert client.request(method, f"/v1/membank/{path}", json=body).status_code == 401


def test_administration_can_be_left_out(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMBANK_API_ADMIN", "false")
    settings.cache_clear()
    with TestClient(create(lambda *_: None)) as client:  # type: ignore[arg-type, return-value]
        assert client.get("/v1/membank/keys").status_code == 404


def test_principals_and_groups_come_and_go(admin: Admin) -> None:
    made = admin("POST", "principals", {"name": "bob", "groups": ["hr"]})
    assert made.json() == {"name": "bob", "groups": ["hr"]}
    assert admin("PUT", "groups/it%20team/principals/bob").json()["groups"] == ["hr", "it team"]
    assert {"name": "bob", "groups": ["hr", "it team"]} in data(admin("GET", "principals"))
    assert admin("DELETE", "groups/hr/principals/bob").status_code == 200
    assert admin("DELETE", "groups/hr/principals/bob").status_code == 404
    assert {"name": "hr", "principals": []} in data(admin("GET", "groups"))
    assert admin("DELETE", "principals/bob").json() == {"id": "bob", "deleted": True}
    assert admin("DELETE", "principals/bob").status_code == 404


def test_a_deleted_principal_leaves_nothing_to_the_next_of_its_name(
    admin: Admin, company: Company
) -> None:
    company.reader("bob")
    company.store("a", "one", ["principal:bob", "principal:root"])
    assert admin("PUT", "banks/handbook/members/principal:bob", {"role": "admin"}).is_success
    assert admin("DELETE", "principals/bob").is_success
    path = "banks/handbook/documents/a/access"
    assert admin("GET", path).json() == {"access": ["principal:root"]}
    assert "principal:bob" not in str(data(admin("GET", "banks/handbook/members")))


def test_a_revoked_key_counts_no_more(admin: Admin, client: TestClient) -> None:
    made = admin("POST", "keys", {"principal": "root", "scopes": ["admin"], "name": "second"})
    token, number = made.json()["token"], made.json()["id"]
    with_it = {"Authorization": f"Bearer {token}"}
    assert client.get("/v1/membank/keys", headers=with_it).status_code == 200
    listed = admin("GET", "keys")
    assert [key["state"] for key in data(listed) if key["id"] == number] == ["good"]
    assert token not in listed.text
    assert token.split("_", 2)[2] not in listed.text
    assert admin("DELETE", f"keys/{number}").is_success
    assert client.get("/v1/membank/keys", headers=with_it).status_code == 401
    assert [k["state"] for k in data(admin("GET", "keys")) if k["id"] == number] == ["revoked"]


def test_a_change_of_rights_counts_at_once(admin: Admin, company: Company) -> None:
    company.store("a", "one")
    work_off()
    who = company.reader("root")
    seen = "SELECT id FROM document"
    assert ask(who, seen) == [("a",)]
    path = "banks/handbook/documents/a/access"
    assert admin("PUT", path, {"access": []}).json() == {"access": []}
    assert ask(who, seen) == []
    assert admin("PUT", path, {"access": ["everyone"]}).is_success
    assert admin("DELETE", "banks/handbook/members/everyone").is_success
    assert ask(who, seen) == []
    assert admin("PUT", "banks/handbook/members/principal:root", {"role": "reader"}).is_success
    assert ask(who, seen) == [("a",)]


def test_what_is_of_another_tenant_is_not_there(
    admin: Admin, client: TestClient, new_company: Callable[[str], Company]
) -> None:
    other = new_company("bolt")
    other.store("secret", "one")
    other.reader("eve", "spies")
    theirs = Admin(client, other, ("admin",))
    number = data(theirs("GET", "keys"))[0]["id"]
    administer("UPDATE bank SET name = 'vault' WHERE tenant_id = :t", t=other.tenant)
    assert admin("DELETE", f"keys/{number}").status_code == 404
    assert admin("DELETE", "principals/eve").status_code == 404
    assert admin("DELETE", "groups/spies/principals/root").status_code == 404
    assert admin("GET", "banks/vault/members").status_code == 404
    assert admin("GET", "jobs?bank=vault").status_code == 404
    assert admin("POST", "jobs/cancel", {"bank": "vault"}).status_code == 404
    assert admin("GET", "banks/handbook/documents/secret/access").status_code == 404
    assert admin("POST", "keys", {"principal": "eve"}).status_code == 404
    assert admin("POST", "erasure", {"tenant": "bolt"}).status_code == 400
    for path in ("principals", "groups", "banks", "keys", "jobs", "audit"):
        assert not {"eve", "spies", "vault", "secret"} & set(admin("GET", path).text.split('"'))
    assert admin("POST", "jobs/cancel", {}).json() == {"count": 0}
    assert ask(Asker("admin"), "SELECT count(*) FROM outbox") == [(1,)]
    assert theirs("GET", "keys").status_code == 200


def test_jobs_are_cancelled_retried_and_discarded(admin: Admin, company: Company) -> None:
    company.store("a", "one\n\ntwo")
    listed = admin("GET", "jobs?document=a&limit=1").json()
    assert listed["total"] == 2
    assert [job["state"] for job in listed["data"]] == ["pending"]
    assert admin("POST", "jobs/cancel", {"bank": "handbook", "document": "a"}).json()["count"] == 2
    assert admin("GET", "jobs?state=failed").json()["total"] == 2
    assert admin("POST", "jobs/retry", {}).json() == {"count": 2}
    admin("POST", "jobs/cancel", {})
    assert admin("POST", "jobs/discard", {}).json() == {"count": 2}
    assert admin("GET", "jobs").json()["total"] == 0


def test_files_that_wait_are_jobs_too(admin: Admin, company: Company) -> None:
    alice = company.reader("alice")
    grant(company.bank, "principal:alice", BankRole.WRITER)
    file = edges.upload(alice, "a.md", "assistants", b"text").id
    edges.attach(alice, company.bank.id, [(file, {})])
    [job] = data(admin("GET", "jobs"))
    assert (job["file_id"], job["document_id"], job["state"]) == (file, None, "pending")
    assert admin("GET", f"jobs?document={file}").json()["total"] == 1
    assert admin("POST", "jobs/cancel", {"document": file}).json() == {"count": 1}
    assert admin("GET", "jobs").json()["total"] == 0


def test_banks_quota_and_usage_are_read(admin: Admin, company: Company) -> None:
    company.store("a", "one\n\ntwo")
    work_off()
    [bank] = data(admin("GET", "banks"))
    assert (bank["name"], bank["documents"], bank["memories"]) == ("handbook", 1, 2)
    quota = admin("GET", "quota").json()
    assert quota["limits"] == dict.fromkeys(
        ("documents", "bytes", "requests", "tokens", "upload_bytes")
    )
    assert quota["used"]["documents"] == 1
    assert data(admin("GET", "usage")) == []


def test_events_are_read_page_by_page(admin: Admin, company: Company) -> None:
    for number in range(3):
        company.store(str(number), "one")
    seen, after = [], 0
    while True:
        page = admin("GET", f"audit?limit=2&after={after}").json()
        seen += [event["id"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    whole = admin("GET", "audit").json()["data"]
    assert seen == [event["id"] for event in whole]
    assert len(seen) >= 3
    assert data(admin("GET", "audit?since=2999-01-01T00:00:00Z")) == []


def test_a_tenant_is_erased_only_by_its_name(admin: Admin, company: Company) -> None:
    company.store("a", "one")
    assert admin("POST", "erasure", {"tenant": "harbour"}).status_code == 400
    assert admin("POST", "erasure", {}).status_code == 400
    receipt = admin("POST", "erasure", {"tenant": company.name}).json()
    assert receipt["rows"]["document"] == 1
    assert admin("GET", "keys").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "principals", {"name": "a\x00b"}),
        ("POST", "principals", {"name": "\ud800"}),
        ("POST", "principals", {"name": "x" * 201}),
        ("POST", "principals", {"name": " "}),
        ("POST", "keys", {"principal": "root", "days": 2**70}),
        ("POST", "keys", {"principal": "root", "name": "\ud800"}),
        ("POST", "keys", {"principal": "root", "scopes": []}),
        ("PUT", "banks/handbook/members/bob", {"role": "reader"}),
        ("PUT", "banks/handbook/members/everyone", {"role": "god"}),
        ("PUT", "banks/handbook/documents/a/access", {"access": ["all"]}),
        ("POST", "jobs/retry", {"document": "\x00"}),
        ("GET", "jobs?limit=-1", None),
        ("GET", "jobs?document=%00", None),
        ("GET", "audit?after=99999999999999999999", None),
        ("GET", "audit?since=NaN", None),
        ("GET", "usage?days=0", None),
    ],
)
def test_values_that_cannot_be_are_refused(admin: Admin, method: str, path: str, body: Any) -> None:
    said = admin._client.request(
        method,
        f"/v1/membank/{path}",
        content=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {admin.token}", "content-type": "application/json"},
    )
    assert said.status_code == 400, said.text
    assert set(said.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", "groups/hr/principals/bob", None), ("POST", "keys", {"principal": "bob"})],
)
def test_who_is_removed_meanwhile_is_a_conflict(
    admin: Admin,
    company: Company,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: Any,
) -> None:
    gone = Asker("app", company.tenant, 10**9)
    for module in (principals, keys):
        monkeypatch.setattr(module, "find_principal", lambda *_: gone)
    said = admin(method, path, body)
    assert (said.status_code, said.json()["error"]["code"]) == (409, "conflict")
