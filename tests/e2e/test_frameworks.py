"""What docs/how-to says of frameworks and MCP clients can be done, where their packages are."""

import functools
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.ingest.command import run as ingest
from tests.e2e.conftest import make_tenant
from tests.edges import issue

PAGES = Path(__file__).parents[2] / "docs/how-to"
FACT = "# Annual Leave\n\nEvery employee of Fjord has 23 days of annual leave.\n"


@pytest.fixture(scope="module")
def address(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("fjord") / "leave.md"
    file.write_text(FACT)
    make_tenant("fjord", ("alice", []))
    ingest([file], "fjord", "handbook", ("everyone",), False, True)
    return url


@pytest.fixture(autouse=True)
def as_the_pages_say(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", issue("fjord", "alice").token)


def codes(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def printed(code: str) -> str:
    out = io.StringIO()
    names: dict[str, Any] = {"print": functools.partial(print, file=out), "__name__": "example"}
    exec(compile(code, "example", "exec"), names)  # noqa: S102
    return out.getvalue()


@pytest.mark.parametrize(
    ("package", "number"),
    [
        ("langchain_openai", 0),
        ("langchain_core", 1),
        ("llama_index.llms.openai_like", 2),
        ("llama_index.core", 3),
    ],
)
# Of the frameworks themselves.
@pytest.mark.filterwarnings("default")
def test_a_framework_asks_and_searches(package: str, number: int) -> None:
    pytest.importorskip(package)
    said = printed(codes("frameworks.md", "python")[number])
    assert "23" in said
    assert number in (0, 2) or "Annual Leave" in said


def test_an_mcp_client_connects_by_url_and_header(address: str) -> None:
    def here(code: str) -> str:
        assert "http://127.0.0.1:8000" in code
        return code.replace("http://127.0.0.1:8000", address)

    (code,) = codes("mcp.md", "python")
    assert "23" in printed(here(code))
    (command,) = codes("mcp.md", "bash")
    done = subprocess.run(
        ["bash", "-ec", here(command)], capture_output=True, text=True, timeout=60, check=True
    )
    tools = json.loads(done.stdout)["result"]["tools"]
    assert {tool["name"] for tool in tools} == {"search", "ask", "add", "forget"}
    (configuration,) = codes("mcp.md", "json")
    assert json.loads(configuration)["mcpServers"]["membank"]["url"].endswith("/mcp")
