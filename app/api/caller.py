"""Who calls: the tenant and the principal come from what the request shows, never from its body."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.access.identity import Identity, identify
from app.errors import UnauthorizedError

_bearer = HTTPBearer(auto_error=False, description="An API key (membank key issue) or a JWT.")


def _identity(
    request: Request,
    shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Identity:
    if shown is None:
        raise UnauthorizedError("give an API key or a token: Authorization: Bearer ...")
    who = identify(shown.credentials)
    request.state.tenant = who.tenant
    return who


def _with_scope(scope: str) -> Callable[[Identity], Identity]:
    def checked(who: Annotated[Identity, Depends(_identity)]) -> Identity:
        who.may(scope)
        return who

    return checked


Reading = Annotated[Identity, Depends(_with_scope("read"))]
"""A caller that may ask and search."""
Writing = Annotated[Identity, Depends(_with_scope("write"))]
"""A caller that may change documents."""
Administering = Annotated[Identity, Depends(_with_scope("admin"))]
"""A caller that may administer its tenant."""
