"""Traces, exported as OpenTelemetry's variables say. Without an endpoint nothing is imported."""

import contextlib
import contextvars
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine, event

P = ParamSpec("P")
T = TypeVar("T")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str] | None = None, **attributes: Any) -> Iterator[Any]:
    """Record a span of the current trace, as a context manager or a decorator.

    Yields the span, or None when tracing is off. `headers` are those of a request, whose
    `traceparent` names the trace to join. An error is recorded by its type alone, because its
    message may contain what a user asked.
    """
    tracer = _tracer()
    if tracer is None:
        yield None
        return
    from opentelemetry import propagate
    from opentelemetry.trace import Status, StatusCode

    around = None if headers is None else propagate.extract(dict(headers))
    with tracer.start_as_current_span(
        name,
        around,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield made
        except Exception as error:
            made.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def past(name: str, started: float, **attributes: Any) -> None:
    """Record a span that began at `started` (a time.perf_counter value) and ends now."""
    tracer = _tracer()
    if tracer is not None:
        now = time.time_ns()
        begun = now - int((time.perf_counter() - started) * 1e9)
        tracer.start_span(name, start_time=begun, attributes=attributes).end(now)


def carried(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function so that it belongs to the current trace in whichever thread calls it.

    Two threads must not call it at the same time.
    """
    if _tracer() is None:
        return function
    context = contextvars.copy_context()

    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(function, *args, **kwargs)

    return called


def watch(engine: Engine) -> None:
    """Record a span for each SQL statement: its text with placeholders, never their values."""
    if _tracer() is None:
        return

    @event.listens_for(engine, "before_cursor_execute")
    def begin(_c: Any, _cursor: Any, _s: str, _p: Any, context: Any, _many: bool) -> None:
        if context is not None:
            context.membank_began = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def end(_c: Any, _cursor: Any, statement: str, _p: Any, context: Any, _many: bool) -> None:
        if context is not None:
            name = statement.split(None, 1)[0].upper()
            past(
                name,
                context.membank_began,
                **{"db.system.name": "postgresql", "db.query.text": statement},
            )


def enabled() -> bool:
    """Whether OpenTelemetry's variables turn tracing on; empty ones count as unset."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return False
    return any(os.environ.get(name, "").strip() for name in _ENDPOINTS)


@lru_cache(maxsize=1)
def _tracer() -> Any:
    if not enabled():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    # The provider shuts down with the process and first sends whatever is left.
    provider = TracerProvider(
        resource=Resource.create({} if named else {"service.name": "membank"})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("membank")
