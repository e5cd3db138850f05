"""Requests that are done once: what changes something can be sent again without doing it again."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse

from app.api.http.caller import identity_of
from app.bank.idempotency import Kept, Once, begin
from app.errors import UsageError
from app.settings import settings

_LONGEST = 255


class OnceRoute(APIRoute):
    """A POST with an Idempotency-Key is done once: `APIRouter(route_class=OnceRoute)`.

    The same request of the same caller gets the same response again for a day, with the header
    Idempotent-Replayed. A response that is no success is not kept and frees the key; so does one
    that is streamed. For routes whose bodies are JSON: they are read into memory.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is None or request.method != "POST":
                return await handle(request)
            begun = await _begin(request, key)
            if isinstance(begun, Kept):
                headers = {"Idempotent-Replayed": "true"}
                return Response(begun.body, begun.status, headers, "application/json")
            return await _done(begun, handle, request)

        return once


async def _begin(request: Request, key: str) -> Once | Kept:
    if not 0 < len(key) <= _LONGEST or not key.isascii() or not key.isprintable():
        raise UsageError(f"the Idempotency-Key must be 1 to {_LONGEST} printable ASCII characters")
    who = await identity_of(request)
    # With another scope it is another request: what one key may see another may not.
    said = [request.method, request.url.path, request.url.query, *sorted(who.scopes), ""]
    whole = "\n".join(said).encode() + await request.body()
    return await run_in_threadpool(begin, who.asker, key, whole, settings().request_seconds)


async def _done(
    begun: Once, handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
) -> Response:
    kept = None
    try:
        response = await handle(request)
        if response.status_code < 300 and not isinstance(response, StreamingResponse):
            kept = Kept(response.status_code, bytes(response.body))
        return response
    finally:
        if kept is None:
            await run_in_threadpool(begun.release)
        else:
            await run_in_threadpool(begun.keep, kept)
