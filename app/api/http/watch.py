"""What every request leaves behind: a log line, a count and a span, never its text or query."""

import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.process import metrics
from app.process.tracing import span

log = structlog.get_logger("request")

# Asked every few seconds by machines.
_QUIET = ("/health", "/metrics")
_GONE = 499


class Watch:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method, failed = scope["method"], False
        with span("request", dict(Headers(scope=scope)), **{"http.request.method": method}) as seen:
            try:
                await self._app(scope, receive, noted)
            except Exception:
                failed = True
                raise
            finally:
                # Without a response somebody went away, or it is made further out after an error.
                status = 500 if failed else status or _GONE
                route = _route(scope)
                self._note(scope, method, route, status, time.perf_counter() - started)
                if seen is not None:
                    seen.update_name(f"{method} {route}")
                    seen.set_attributes(
                        {"http.route": route, "http.response.status_code": status}
                        | {
                            f"membank.{name}": scope["state"][name]
                            for name in ("request_id", "tenant")
                            if name in scope.get("state", {})
                        }
                    )

    def _note(self, scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
        # Methods are what a client writes: the others count as one.
        known = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE") else "other"
        metrics.requests.labels(known, route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        state = scope.get("state", {})
        tell = log.debug if route.startswith(_QUIET) else log.info
        tell(
            "request",
            request_id=state.get("request_id", ""),
            method=known,
            route=route,
            status=status,
            ms=round(seconds * 1000, 1),
            tenant=state.get("tenant", ""),
        )


def _route(scope: Scope) -> str:
    """The route's pattern, with placeholders instead of the values in the path."""
    known = scope.get("route") or scope.get("endpoint")
    return getattr(known, "path", None) or "unknown"
