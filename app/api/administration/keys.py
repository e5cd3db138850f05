"""API keys: listed, issued and revoked."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from app.access import keys
from app.api.administration.fields import (
    Deleted,
    Listed,
)
from app.api.administration.operator import administrator, tenant_of
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name, Printable
from app.db.session import transaction

router = APIRouter()


class Key(BaseModel):
    """A key, without what makes it work."""

    id: str
    principal: str
    name: str
    scopes: list[str]
    state: Literal["good", "expired", "revoked"]
    created: datetime
    expires: datetime
    revoked: datetime | None
    last_used: datetime | None


class NewKey(BaseModel):
    """A key to issue."""

    principal: Name
    scopes: list[Literal["read", "write", "admin"]] = Field(["read"], min_length=1, max_length=3)
    days: int = Field(365, ge=1, le=keys.LONGEST)
    name: Annotated[Printable, Field(max_length=200)] = ""


class IssuedKey(BaseModel):
    """A new key. The token is shown this once."""

    id: str
    token: str
    expires: datetime


@router.get("/keys", responses=responses())
def list_keys(who: MayAdminister) -> Listed[Key]:
    """The newest first."""
    with transaction(administrator(who)) as connection:
        return Listed(data=[Key(**row) for row in keys.keys(connection, tenant_of(who))])


@router.post("/keys", responses=responses(404))
def issue_key(body: NewKey, who: MayAdminister) -> IssuedKey:
    with transaction(administrator(who)) as connection:
        issued = keys.issue(
            connection, tenant_of(who), body.principal, body.scopes, body.days, body.name
        )
    return IssuedKey(id=issued.id, token=issued.token, expires=issued.expires)


@router.delete("/keys/{key}", responses=responses(404))
def revoke_key(key: Annotated[Printable, Path(max_length=64)], who: MayAdminister) -> Deleted:
    """It counts no more from the next request on, and stays in the list."""
    with transaction(administrator(who)) as connection:
        keys.revoke(connection, tenant_of(who), key)
    return Deleted(id=key)
