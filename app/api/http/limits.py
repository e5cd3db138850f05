"""What every request is held to: its size, its tenant's rate, and a number to find it by."""

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import error_body
from app.settings import settings

_NUMBER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MINUTE = 60.0
_MANY = 10_000
BODY_SECONDS = 60.0
"""Between two pieces of a request's body."""


def hold(app: FastAPI) -> None:
    """Let all routes of `app` keep to the limits of the settings.

    A route that takes more in one request gives `max_body_size` where it is declared.
    """
    app.state.rates = Rates(settings().rate_per_minute)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings().max_request_bytes)
    app.add_middleware(Envelope)


@dataclass(frozen=True)
class Rate:
    """A tenant's rate after a request: how many more are `left`, and seconds until all are.

    wait: seconds until there is one again, for a request that is one too many; else 0.
    """

    most: int
    left: int
    full: float
    wait: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """As OpenAI's service has them."""
        return {
            "x-ratelimit-limit-requests": str(self.most),
            "x-ratelimit-remaining-requests": str(self.left),
            "x-ratelimit-reset-requests": f"{self.full:.3f}s",
        }


class Rates:
    """Requests that each tenant has left: `most` at once, and as many again each minute.

    Counted in this process alone.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`most`: 0 for any number."""
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}

    def take(self, tenant: str) -> Rate | None:
        """What is left after one more request. None: nobody counts."""
        if not self._most:
            return None
        now, each = self._clock(), _MINUTE / self._most
        with self._lock:
            if len(self._full_at) > _MANY:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            used = max(self._full_at.get(tenant, now) - now, 0.0)
            wait = max(used + each - _MINUTE, 0.0)
            if wait > 1e-6:
                return Rate(self._most, 0, used, wait)
            self._full_at[tenant] = now + used + each
        return Rate(self._most, int((_MINUTE - used - each) / each + 1e-6), used + each)


_TOO_LARGE = json.dumps(
    error_body("the request's body is too large", "invalid_request_error", "request_too_large")
).encode()


class Envelope:
    """Gives a response the number of its request and the headers that its state has.

    The number is what the caller sends in x-request-id, or a new one; it is also in the request's
    state, as `request_id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = given if _NUMBER.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        plain = False

        async def marked(message: Message) -> None:
            nonlocal plain
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                # The one answer that is not made by app/api/http/errors.py.
                plain = message["status"] == 413 and headers["content-type"].startswith("text/")
                if plain:
                    headers["content-type"] = "application/json"
                    headers["content-length"] = str(len(_TOO_LARGE))
                headers["x-request-id"] = state["request_id"]
                headers.update(state.get("headers", {}))
                message = {**message, "headers": headers.raw}
            elif plain:
                message = {**message, "body": _TOO_LARGE}
            await send(message)

        await self._app(scope, _Body(receive), marked)


class _Body:
    """Receives a request. One whose body stands still for too long is a 408."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._whole = receive, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await self._receive()
        except TimeoutError:
            told = f"nothing came of the request's body for {BODY_SECONDS:g} s: send it again"
            raise HTTPException(408, told, {"Connection": "close"}) from None
        self._whole = not message.get("more_body", False)
        return message
