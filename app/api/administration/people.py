"""Principals and the groups that they are in."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from app.access import principals
from app.access.identity import Identity
from app.api.administration.fields import (
    Deleted,
    Listed,
)
from app.api.administration.operator import administrator, tenant_of
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name
from app.db.session import transaction

router = APIRouter()


class Principal(BaseModel):
    """One who asks, and the groups that it is in."""

    name: str
    groups: list[str]


class NewPrincipal(BaseModel):
    """A principal to make; a known one joins the groups."""

    name: Name
    groups: list[Name] = Field(default_factory=list, max_length=100)


class Group(BaseModel):
    """A set of principals."""

    name: str
    principals: list[str]


@router.get("/principals", responses=responses())
def list_principals(who: MayAdminister) -> Listed[Principal]:
    with transaction(administrator(who)) as connection:
        found = principals.principals(connection, tenant_of(who))
    return Listed(data=[Principal(name=name, groups=of) for name, of in found.items()])


@router.post("/principals", responses=responses())
def add_principal(body: NewPrincipal, who: MayAdminister) -> Principal:
    with transaction(administrator(who)) as connection:
        principals.add_principal(connection, tenant_of(who), body.name, body.groups)
        return _principal(connection, who, body.name.strip())


@router.delete("/principals/{name:path}", responses=responses(404))
def remove_principal(name: Name, who: MayAdminister) -> Deleted:
    """Its keys count no more, and its name leaves all lists."""
    with transaction(administrator(who)) as connection:
        principals.remove_principal(connection, tenant_of(who), name)
    return Deleted(id=name)


@router.get("/groups", responses=responses())
def list_groups(who: MayAdminister) -> Listed[Group]:
    with transaction(administrator(who)) as connection:
        found = principals.groups(connection, tenant_of(who))
    return Listed(data=[Group(name=name, principals=some) for name, some in found.items()])


@router.put("/groups/{group:path}/principals/{name:path}", responses=responses(404))
def join_group(group: Name, name: Name, who: MayAdminister) -> Principal:
    """The group is made if it is new."""
    with transaction(administrator(who)) as connection:
        principals.join_group(connection, tenant_of(who), group, name)
        return _principal(connection, who, name)


@router.delete("/groups/{group:path}/principals/{name:path}", responses=responses(404))
def leave_group(group: Name, name: Name, who: MayAdminister) -> Deleted:
    """Counts from the next question."""
    with transaction(administrator(who)) as connection:
        principals.leave_group(connection, tenant_of(who), group, name)
    return Deleted(id=name)


def _principal(connection: Connection, who: Identity, name: str) -> Principal:
    return Principal(
        name=name, groups=principals.principals(connection, tenant_of(who)).get(name, [])
    )
