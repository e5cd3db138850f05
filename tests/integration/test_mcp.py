"""The MCP server through mcp's own client: keys, scopes, what is another's, errors of tools."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from app.api import mcp
from app.api.application import create
from app.bank.roles import BankRole
from app.db.session import Asker
from tests.conftest import Company, administer, ask
from tests.edges import add_principal, grant, issue
from tests.edges import revoke_key as revoke

URL = "http://service/mcp"
Call = Callable[..., Awaitable[Any]]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded: a token is a word, and a bank's profile is not looked at."""
    monkeypatch.setattr(mcp, "count_tokens", lambda text: len(text.split()))
    monkeypatch.setattr(mcp, "require_splitting", lambda _: None)


def token_of(company: Company, *scopes: str) -> str:
    add_principal(company.name, "alice")
    return issue(company.name, "alice", scopes).token


def run(token: str, use: Callable[[Client, httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    """Use a client of a service that holds nothing but routes."""

    async def inside() -> Any:
        app = create(lambda *_: None)  # type: ignore[arg-type, return-value]
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=app),
                headers={"Authorization": f"Bearer {token}"},
            ) as http,
            Client(streamable_http_client(URL, http_client=http)) as client,
        ):
            return await use(client, http)

    return asyncio.run(inside())


def texts(result: Any) -> str:
    return " ".join(part.text for part in result.content)


def test_the_tools_are_named_and_described(company: Company) -> None:
    async def use(client: Client, _: Any) -> Any:
        return (await client.list_tools()).tools

    tools = run(token_of(company, "read"), use)
    assert {tool.name for tool in tools} == {"search", "ask", "add", "forget"}
    assert all(tool.description for tool in tools)
    properties = [tool.input_schema["properties"] for tool in tools]
    assert all("bank" in each and "ctx" not in each for each in properties)


def test_a_text_is_added_and_forgotten_in_the_name_of_the_keys_principal(
    company: Company,
) -> None:
    token = token_of(company, "read", "write")
    grant(company.bank, "principal:alice", BankRole.WRITER)

    async def use(client: Client, _: Any) -> Any:
        values = {"bank": "handbook", "title": "Dogs", "text": "On Friday.\n\nNot on Monday."}
        added = await client.call_tool("add", values)
        number = added.structured_content["document_id"]
        stored = ask_documents(company)
        gone = await client.call_tool("forget", {"bank": "handbook", "document_id": number})
        return added, stored, gone

    added, stored, gone = run(token, use)
    assert not added.is_error
    assert stored == [("Dogs", "On Friday.\n\nNot on Monday.")]
    assert not gone.is_error
    assert ask_documents(company) == []


def ask_documents(company: Company) -> list[tuple[Any, ...]]:
    return ask(
        Asker("admin"),
        "SELECT title, text FROM document WHERE tenant_id = :tenant",
        tenant=company.tenant,
    )


@pytest.mark.parametrize(
    ("scopes", "role", "values", "told"),
    [
        (("read",), BankRole.WRITER, {}, "scope write"),
        (("read", "write"), BankRole.READER, {}, "role writer"),
        (("read", "write"), BankRole.WRITER, {"bank": "vault"}, "no bank 'vault'"),
        (("read", "write"), BankRole.WRITER, {"text": "a\x00b"}, "NUL"),
        (("read", "write"), BankRole.WRITER, {"text": " "}, "empty"),
        (("read", "write"), BankRole.WRITER, {"document_id": ""}, "document_id"),
    ],
)
def test_what_may_not_be_is_an_error_of_the_tool(
    company: Company, scopes: tuple[str, ...], role: BankRole, values: dict[str, str], told: str
) -> None:
    token = token_of(company, *scopes)
    grant(company.bank, "principal:alice", role)

    async def use(client: Client, _: Any) -> Any:
        whole = {"bank": "handbook", "title": "Dogs", "text": "On Friday."}
        return await client.call_tool("add", whole | values)

    result = run(token, use)
    assert result.is_error
    assert told in texts(result)
    assert ask_documents(company) == []


def test_a_document_of_another_tenant_is_not_there(
    company: Company, new_company: Callable[[str], Company]
) -> None:
    other = new_company("bolt")
    other.store("secret", "one")
    token = token_of(company, "read", "write")
    grant(company.bank, "principal:alice", BankRole.WRITER)
    administer("UPDATE bank SET name = 'vault' WHERE tenant_id = :t", t=other.tenant)

    async def use(client: Client, _: Any) -> Any:
        return [
            await client.call_tool("forget", {"bank": bank, "document_id": "secret"})
            for bank in ("handbook", "vault")
        ]

    assert [result.is_error for result in run(token, use)] == [True, True]
    assert len(ask_documents(other)) == 1


def test_a_revoked_key_counts_no_more_in_the_middle_of_a_connection(company: Company) -> None:
    token = token_of(company, "read", "write")

    async def use(client: Client, http: httpx2.AsyncClient) -> Any:
        await client.list_tools()
        revoke(company.name, token.split("_")[1])
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accept = {"Accept": "application/json, text/event-stream"}
        return await http.post(URL, json=body, headers=accept)

    said = run(token, use)
    assert said.status_code == 401
    assert said.headers["www-authenticate"] == "Bearer"
    assert said.json()["error"]["type"] == "authentication_error"


def test_nobody_without_a_key_is_let_in(database: str) -> None:
    async def inside() -> int:
        app = create(lambda *_: None)  # type: ignore[arg-type, return-value]
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http,
        ):
            return (await http.post(URL, json={})).status_code

    assert asyncio.run(inside()) == 401
