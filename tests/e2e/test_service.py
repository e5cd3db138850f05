"""The HTTP service as `membank up` starts it: ready, over MCP, without a server, restarted."""

import asyncio
import os
import signal
import time
from typing import Any

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from app.bank.roles import BankRole
from app.local.processes import wait_until
from app.local.stack import Stack
from tests import edges
from tests.e2e.conftest import make_tenant
from tests.edges import find_bank, grant, issue

TEXT = "# Annual Leave\n\nEvery employee of Cliff has 29 days of annual leave.\n"


def ready(url: str) -> tuple[int, dict[str, str]]:
    said = httpx.get(f"{url}/health/ready", timeout=10)
    return said.status_code, said.json()["checks"]


def counted(url: str) -> dict[str, float]:
    """What the service has counted of answers from memory."""
    names = ("membank_answers_total", "membank_answer_first_token_seconds_count")
    found = dict.fromkeys(names, 0.0)
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        for name in names:
            if line.startswith(f'{name}{{mode="memory"}} '):
                found[name] = float(line.rpartition(" ")[2])
    return found


def test_it_is_ready_when_up_says_so(url: str) -> None:
    assert ready(url)[0] == 200
    assert "membank_engine_running 0.0" in httpx.get(f"{url}/metrics").text.splitlines()


def test_a_model_adds_searches_asks_and_forgets_over_mcp(url: str) -> None:
    make_tenant("cliff", ("alice", []))
    grant(find_bank("cliff", "handbook"), "principal:alice", BankRole.WRITER)
    token = issue("cliff", "alice", ("read", "write")).token

    async def use() -> tuple[Any, ...]:
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            bank = {"bank": "handbook"}
            added = await client.call_tool("add", bank | {"title": "Annual Leave", "text": TEXT})
            number = added.structured_content["document_id"]
            done = await asyncio.to_thread(wait_until, lambda: not any(edges.queue().values()), 120)
            assert done
            question = bank | {"question": "How many days of annual leave are there?"}
            found = await client.call_tool("search", question)
            said = await client.call_tool("ask", question)
            gone = await client.call_tool("forget", bank | {"document_id": number})
            after = await client.call_tool("search", question)
            return number, found, said, gone, after

    before = counted(url)
    number, found, said, gone, after = asyncio.run(use())
    assert [p["document_id"] for p in found.structured_content["results"]] == [number]
    assert "29" in said.structured_content["answer"]
    assert [p["document_id"] for p in said.structured_content["sources"]] == [number]
    assert gone.structured_content["memories"] >= 1
    assert after.structured_content["results"] == []
    for name, count in counted(url).items():
        assert count == before[name] + 1, name


def test_it_is_not_ready_while_a_server_is_away_and_ready_again_by_itself(
    url: str, stack: Stack
) -> None:
    assert stack.valkey
    stack.valkey.stop()
    assert wait_until(lambda: ready(url)[0] == 503, 30)
    assert ready(url)[1] == dict.fromkeys(ready(url)[1], "good") | {"queue": "bad"}
    assert httpx.get(f"{url}/health/live").status_code == 200
    stack.valkey.start()
    assert wait_until(lambda: ready(url)[0] == 200, 30)


def test_a_restart_is_ready_again_at_the_same_address(url: str, stack: Stack) -> None:
    running = stack.processes.get("api")
    assert running
    os.kill(running.pid, signal.SIGTERM)
    assert wait_until(lambda: stack.processes.get("api") is None, 40)
    assert "event=stopped" in stack.processes.tail("api")
    before = time.monotonic()
    stack.service("api")
    print(f"ready after {time.monotonic() - before:.1f} s")
    assert stack.addresses()["api_url"] == url
    assert ready(url)[0] == 200


def test_no_line_of_the_log_has_a_key_or_a_text(url: str, stack: Stack) -> None:
    lines = (stack.home / "logs" / "api.log").read_text()
    assert "event=request" in lines
    assert "route=/mcp" in lines
    assert "tenant=cliff" in lines
    assert not [word for word in ("mb_", "annual leave", "Annual") if word in lines]
