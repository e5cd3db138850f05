"""Who calls: the tenant and the principal come from what the request shows, never from its body."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.access.identity import Identity, identify
from app.api.http.rates import Rate
from app.errors import BusyError, UnauthorizedError

_bearer = HTTPBearer(auto_error=False, description="An API key (membank key issue) or a JWT.")


def identity(
    request: Request,
    shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Identity:
    """The caller. Identified once for each request, which then counts against its tenant's rate."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is not None:
        return known
    if shown is None:
        raise UnauthorizedError("give an API key or a token: Authorization: Bearer ...")
    who = identify(shown.credentials)
    request.state.tenant, request.state.identity = who.tenant, who
    _count(request, who.tenant)
    return who


def _count(request: Request, tenant: str) -> None:
    rate: Rate | None = request.app.state.rates.take(tenant)
    if rate is None:
        return
    request.state.headers = rate.headers
    if rate.wait:
        error = BusyError(
            f"tenant {tenant!r} may send {rate.most} requests a minute: wait {rate.wait:.1f} s"
        )
        error.retry_after = rate.wait
        raise error


async def identity_of(request: Request) -> Identity:
    """Identify the caller of `request` where FastAPI's dependencies are not at hand."""
    return await run_in_threadpool(identity, request, await _bearer(request))


def _with_scope(scope: str) -> Callable[[Identity], Identity]:
    def checked(who: Annotated[Identity, Depends(identity)]) -> Identity:
        who.may(scope)
        return who

    return checked


MayRead = Annotated[Identity, Depends(_with_scope("read"))]
"""A caller that may ask and search."""
MayWrite = Annotated[Identity, Depends(_with_scope("write"))]
"""A caller that may change documents."""
MayAdminister = Annotated[Identity, Depends(_with_scope("admin"))]
"""A caller that may administer its tenant."""
