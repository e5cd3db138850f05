"""One trace from the request to SQL, also in other threads; nothing without an endpoint."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text

from app.api.http.watch import Watch
from app.db import session
from app.db.session import Asker, transaction
from app.errors import UsageError
from app.process import tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
# The database is what imports tracing; redis imports the SDK by itself, without using it.
PROCESS = """
import sys
from app.process import tracing
import app.db.session
with tracing.span("told", key="value"):
    pass
tracing.carried(len)([])
print("opentelemetry.sdk" in sys.modules, any("otlp" in name for name in sys.modules))
"""


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    monkeypatch.setattr(tracing, "_tracer", lambda: tracer)
    session._engine.cache_clear()
    yield exporter
    session.dispose()
    session._engine.cache_clear()


def process(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", PROCESS],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.strip()


def test_one_trace_leads_from_the_request_through_its_thread_to_the_statement(
    database: str, exported: InMemorySpanExporter
) -> None:
    app = FastAPI()
    app.add_middleware(Watch)

    @app.get("/asked/{what}")
    def asked(what: str) -> None:
        def work() -> None:
            with tracing.span("search"), transaction(Asker("app")) as connection:
                connection.execute(text("SELECT :secret"), {"secret": "a question"})

        thread = threading.Thread(target=tracing.carried(work))
        thread.start()
        thread.join()

    with TestClient(app) as client:
        client.get("/asked/x?q=y", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    spans = exported.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    named = {span.name: span for span in spans}
    request, search = named["GET /asked/{what}"], named["search"]
    assert parent(search) == own(request)
    statements = [span for span in spans if span.name == "SELECT"]
    assert len(statements) == 2
    assert {parent(span) for span in statements} == {own(search)}
    assert "a question" not in "".join(span.to_json() for span in spans)
    assert "q=y" not in "".join(span.to_json() for span in spans)


def own(span: ReadableSpan) -> int:
    assert span.context
    return span.context.span_id


def parent(span: ReadableSpan) -> int:
    assert span.parent
    return span.parent.span_id


def test_an_error_is_noted_by_its_type_and_not_by_its_message(
    exported: InMemorySpanExporter,
) -> None:
    with pytest.raises(UsageError), tracing.span("search"):
        raise UsageError("the text of a question")
    [span] = exported.get_finished_spans()
    assert span.status.description == "UsageError"
    assert "question" not in span.to_json()


def test_nothing_is_imported_without_an_endpoint() -> None:
    assert process() == "False False"


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_nothing_is_imported_when_it_is_switched_off(off: dict[str, str]) -> None:
    assert process(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **off) == "False False"


def test_spans_are_sent_to_the_endpoint_before_the_process_ends() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )
        server.shutdown()
    [(path, body)] = received
    assert path == "/v1/traces"
    assert b"told" in body
    assert b"membank" in body
