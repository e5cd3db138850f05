"""Administration of the caller's own tenant, for keys and tokens with the scope admin.

It uses the role membank_admin, which policies do not bind: every function here is given the tenant
that the caller's key names, and nothing of a request says another.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from app.access import audit, keys, principals, quota
from app.access.identity import Identity
from app.access.lists import checked_access
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name, Printable
from app.bank import documents, members, roles
from app.bank.find import find_bank
from app.db.addresses import Role
from app.db.session import Asker, transaction
from app.errors import UsageError
from app.queue import jobs, status
from app.upkeep import erase

PREFIX = "/v1/membank"
router = APIRouter(prefix=PREFIX, tags=["administration"])

T = TypeVar("T")


Entry = Annotated[Printable, Field(min_length=1, max_length=220)]
"""everyone, principal:NAME or group:NAME."""
DocumentId = Annotated[Printable, Field(min_length=1, max_length=512)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Listed(BaseModel, Generic[T]):
    """All that there is."""

    object: Literal["list"] = "list"
    data: list[T]


class Deleted(BaseModel):
    """What is no more."""

    id: str
    deleted: Literal[True] = True


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


class Bank(BaseModel):
    """A bank and how far its work is; ages in seconds."""

    name: str
    profile_id: str
    next_profile_id: str | None
    documents: int
    chunks: int
    memories: int
    pending: int
    failed: int
    paused: bool
    staleness: float | None
    last_error: str | None


class Member(BaseModel):
    """Who has which role in a bank."""

    entry: str
    role: roles.Role


class NewRole(BaseModel):
    """A role to have in a bank; each includes those before it."""

    role: roles.Role


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


class Access(BaseModel):
    """Who may read a document: everyone, principal:NAME, group:NAME; nobody where it is empty."""

    access: list[Entry] = Field(max_length=1000)


class Job(BaseModel):
    """A file to read (file_id), a document to split (without chunk_id) or a chunk to encode."""

    bank: str
    file_id: str | None
    document_id: str | None
    chunk_id: int | None
    state: jobs.State
    priority: int | None
    attempts: int
    next_try: datetime | None
    last_error: str | None
    since: datetime
    profile_id: str | None


class Jobs(BaseModel):
    """What failed first, then what is held, then what waits; and how many there are."""

    object: Literal["list"] = "list"
    data: list[Job]
    total: int


class Which(BaseModel):
    """Of which bank and document; without them of all."""

    bank: Name | None = None
    document: DocumentId | None = None


class Count(BaseModel):
    """How many it were."""

    count: int


class Amounts(BaseModel):
    """Documents, bytes of memories and bytes of uploaded files that are held; requests and tokens
    of a day; null: no limit."""

    documents: int | None
    bytes: int | None
    requests: int | None
    tokens: int | None
    upload_bytes: int | None


class Quota(BaseModel):
    """The tenant's limits, and what it holds and has used today."""

    limits: Amounts
    used: Amounts


class Day(BaseModel):
    """What was asked on a day (UTC)."""

    day: date
    requests: int
    tokens: int


class Event(BaseModel):
    """Something that was done."""

    id: int
    at: datetime
    actor: str
    principal_id: int | None
    action: str
    bank: str | None
    bank_id: int | None
    document_ids: list[str]
    chunk_ids: list[int]
    detail: dict[str, Any]


class Events(BaseModel):
    """Some events, the oldest first. `after` of the next request: last_id."""

    object: Literal["list"] = "list"
    data: list[Event]
    last_id: int | None
    has_more: bool


class Erasure(BaseModel):
    """The whole tenant is deleted for good: `tenant` must be its name."""

    tenant: Name


class Receipt(BaseModel):
    """What was erased."""

    tenant: str
    id: int
    rows: dict[str, int]
    blob_bytes: int
    objects: int
    cache_entries: int
    keys_destroyed: int
    keys_missing: list[str]


@router.get("/principals", responses=responses())
def list_principals(who: MayAdminister) -> Listed[Principal]:
    with transaction(_administrator(who)) as connection:
        found = principals.principals(connection, _id(who))
    return Listed(data=[Principal(name=name, groups=of) for name, of in found.items()])


@router.post("/principals", responses=responses())
def add_principal(body: NewPrincipal, who: MayAdminister) -> Principal:
    with transaction(_administrator(who)) as connection:
        principals.add_principal(connection, _id(who), body.name, body.groups)
        return _principal(connection, who, body.name.strip())


@router.delete("/principals/{name:path}", responses=responses(404))
def remove_principal(name: Name, who: MayAdminister) -> Deleted:
    """Its keys count no more, and its name leaves all lists."""
    with transaction(_administrator(who)) as connection:
        principals.remove_principal(connection, _id(who), name)
    return Deleted(id=name)


@router.get("/groups", responses=responses())
def list_groups(who: MayAdminister) -> Listed[Group]:
    with transaction(_administrator(who)) as connection:
        found = principals.groups(connection, _id(who))
    return Listed(data=[Group(name=name, principals=some) for name, some in found.items()])


@router.put("/groups/{group:path}/principals/{name:path}", responses=responses(404))
def join_group(group: Name, name: Name, who: MayAdminister) -> Principal:
    """The group is made if it is new."""
    with transaction(_administrator(who)) as connection:
        principals.join_group(connection, _id(who), group, name)
        return _principal(connection, who, name)


@router.delete("/groups/{group:path}/principals/{name:path}", responses=responses(404))
def leave_group(group: Name, name: Name, who: MayAdminister) -> Deleted:
    """Counts from the next question."""
    with transaction(_administrator(who)) as connection:
        principals.leave_group(connection, _id(who), group, name)
    return Deleted(id=name)


@router.get("/banks", responses=responses())
def list_banks(who: MayAdminister) -> Listed[Bank]:
    with transaction(_administrator(who)) as connection:
        rows = status.banks(connection, _id(who))
    return Listed(data=[Bank(name=str(row["bank"]), **_of(Bank, row)) for row in rows])


@router.get("/banks/{bank:path}/members", responses=responses(404))
def list_members(bank: Name, who: MayAdminister) -> Listed[Member]:
    with transaction(_operator(who, "app")) as connection:
        found = members.members(connection, find_bank(connection, _id(who), bank))
    return Listed(data=[Member(entry=entry, role=role) for entry, role in found.items()])


@router.put("/banks/{bank:path}/members/{entry:path}", responses=responses(404))
def grant(bank: Name, entry: Entry, body: NewRole, who: MayAdminister) -> Member:
    """In place of the role that it had. Counts from the next question."""
    operator = _operator(who, "worker")
    with transaction(operator) as connection:
        found = find_bank(connection, _id(who), bank)
        members.grant(connection, operator, found, entry, body.role)
    return Member(entry=entry, role=body.role)


@router.delete("/banks/{bank:path}/members/{entry:path}", responses=responses(404))
def revoke_role(bank: Name, entry: Entry, who: MayAdminister) -> Deleted:
    operator = _operator(who, "worker")
    with transaction(operator) as connection:
        members.revoke(connection, operator, find_bank(connection, _id(who), bank), entry)
    return Deleted(id=entry)


@router.get("/banks/{bank:path}/documents/{document:path}/access", responses=responses(404))
def get_access(bank: Name, document: DocumentId, who: MayAdminister) -> Access:
    with transaction(_operator(who, "worker")) as connection:
        found = find_bank(connection, _id(who), bank)
        access = documents.access_of(connection, found.tenant, found.id, document)
    return Access(access=access)


@router.put("/banks/{bank:path}/documents/{document:path}/access", responses=responses(404))
def set_access(bank: Name, document: DocumentId, body: Access, who: MayAdminister) -> Access:
    """In place of its list. Counts from the next question, and encodes nothing."""
    operator = _operator(who, "worker")
    with transaction(operator) as connection:
        found = find_bank(connection, _id(who), bank)
        access = checked_access(connection, found.tenant, body.access)
        documents.set_access(connection, operator, found.id, document, access)
    return Access(access=access)


@router.get("/keys", responses=responses())
def list_keys(who: MayAdminister) -> Listed[Key]:
    """The newest first."""
    with transaction(_administrator(who)) as connection:
        return Listed(data=[Key(**row) for row in keys.keys(connection, _id(who))])


@router.post("/keys", responses=responses(404))
def issue_key(body: NewKey, who: MayAdminister) -> IssuedKey:
    with transaction(_administrator(who)) as connection:
        issued = keys.issue(connection, _id(who), body.principal, body.scopes, body.days, body.name)
    return IssuedKey(id=issued.id, token=issued.token, expires=issued.expires)


@router.delete("/keys/{key}", responses=responses(404))
def revoke_key(key: Annotated[Printable, Path(max_length=64)], who: MayAdminister) -> Deleted:
    """It counts no more from the next request on, and stays in the list."""
    with transaction(_administrator(who)) as connection:
        keys.revoke(connection, _id(who), key)
    return Deleted(id=key)


@router.get("/jobs", responses=responses(404))
def list_jobs(
    who: MayAdminister,
    bank: Annotated[Name | None, Query()] = None,
    document: Annotated[DocumentId | None, Query()] = None,
    state: jobs.State | None = None,
    limit: Limit = 100,
) -> Jobs:
    with transaction(_administrator(who)) as connection:
        if bank is not None:
            find_bank(connection, _id(who), bank)
        rows, total = jobs.find(connection, limit, _id(who), bank, document, state)
    return Jobs(data=[Job(**_of(Job, row)) for row in rows], total=total)


@router.post("/jobs/retry", responses=responses(404))
def retry_jobs(body: Which, who: MayAdminister) -> Count:
    """What has failed goes back in the queue."""
    return _changed(jobs.retry, body, who)


@router.post("/jobs/cancel", responses=responses(404))
def cancel_jobs(body: Which, who: MayAdminister) -> Count:
    """What waits goes to what has failed."""
    return _changed(jobs.cancel, body, who)


@router.post("/jobs/discard", responses=responses(404))
def discard_jobs(body: Which, who: MayAdminister) -> Count:
    """What has failed leaves the list for good."""
    return _changed(jobs.discard, body, who)


@router.get("/quota", responses=responses())
def get_quota(who: MayAdminister) -> Quota:
    """Limits are set by those who run the service."""
    with transaction(_administrator(who)) as connection:
        limits, used = quota.quota_of(connection, _id(who))
    return Quota(limits=Amounts(**asdict(limits)), used=Amounts(**asdict(used)))


@router.get("/usage", responses=responses())
def get_usage(who: MayAdminister, days: Annotated[int, Query(ge=1, le=366)] = 31) -> Listed[Day]:
    """The latest day first; days without a request are left out."""
    with transaction(_administrator(who)) as connection:
        return Listed(data=[Day(**row) for row in quota.usage(connection, _id(who), days)])


@router.get("/audit", responses=responses())
def list_events(
    who: MayAdminister,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    since: datetime | None = None,
    limit: Limit = 100,
) -> Events:
    """Events whose id is greater than `after`. One that is long in coming can have a smaller id
    than one that was read already."""
    with transaction(_administrator(who)) as connection:
        rows = audit.page(connection, _id(who), limit + 1, after, since)
    shown = [Event(**row) for row in rows[:limit]]
    last = shown[-1].id if shown else None
    return Events(data=shown, last_id=last, has_more=len(rows) > limit)


@router.post("/erasure", responses=responses(404))
def erase_tenant(body: Erasure, who: MayAdminister) -> Receipt:
    """Its keys are destroyed and all its rows deleted. It cannot be undone."""
    if body.tenant != who.tenant:
        raise UsageError(
            f"this key is of tenant {who.tenant!r}: repeat its name in `tenant` to erase it"
        )
    return Receipt(**erase.erase(who.tenant))


def _changed(
    change: Callable[[Connection, int, int | None, str | None], int], which: Which, who: Identity
) -> Count:
    with transaction(_administrator(who)) as connection:
        bank = None if which.bank is None else find_bank(connection, _id(who), which.bank).id
        return Count(count=change(connection, _id(who), bank, which.document))


def _principal(connection: Connection, who: Identity, name: str) -> Principal:
    return Principal(name=name, groups=principals.principals(connection, _id(who)).get(name, []))


def _operator(who: Identity, role: Role) -> Asker:
    """Who administers a tenant does so by the key's scope, whatever the role in a bank is."""
    return Asker(role, _id(who))


def _administrator(who: Identity) -> Asker:
    return _operator(who, "admin")


def _id(who: Identity) -> int:
    if who.asker.tenant is None:
        raise AssertionError("who calls has a tenant")
    return who.asker.tenant


def _of(model: type[BaseModel], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a model has, its own names apart."""
    return {name: row[name] for name in model.model_fields if name in row}
