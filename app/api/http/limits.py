"""What holds for every request: a limit on its size, its tenant's rate, and an id to find it by."""

import asyncio
import json
import re
import uuid

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import error_body
from app.api.http.rates import Rates
from app.settings import settings

_NUMBER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
BODY_SECONDS = 60.0
"""Longest wait between two pieces of a request's body."""


def hold(app: FastAPI) -> None:
    """Hold all routes of `app` to the limits in the settings.

    A route that takes more in one request gives `max_body_size` where it is declared.
    """
    app.state.rates = Rates(settings().rate_per_minute)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings().max_request_bytes)
    app.add_middleware(Envelope)


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
    """Receives a request; raises a 408 when its body stalls for too long."""

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
