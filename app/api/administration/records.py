"""Quotas, use and the audit log of a tenant, and the end of them all: erasure."""

from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.access import audit, quota
from app.api.administration.fields import (
    Limit,
    Listed,
)
from app.api.administration.operator import administrator, tenant_of
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name
from app.db.session import transaction
from app.errors import UsageError
from app.upkeep import erase

router = APIRouter()


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


@router.get("/quota", responses=responses())
def get_quota(who: MayAdminister) -> Quota:
    """Limits are set by those who run the service."""
    with transaction(administrator(who)) as connection:
        limits, used = quota.quota_of(connection, tenant_of(who))
    return Quota(limits=Amounts(**asdict(limits)), used=Amounts(**asdict(used)))


@router.get("/usage", responses=responses())
def get_usage(who: MayAdminister, days: Annotated[int, Query(ge=1, le=366)] = 31) -> Listed[Day]:
    """The latest day first; days without a request are left out."""
    with transaction(administrator(who)) as connection:
        return Listed(data=[Day(**row) for row in quota.usage(connection, tenant_of(who), days)])


@router.get("/audit", responses=responses())
def list_events(
    who: MayAdminister,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    since: datetime | None = None,
    limit: Limit = 100,
) -> Events:
    """Events whose id is greater than `after`. One that is long in coming can have a smaller id
    than one that was read already."""
    with transaction(administrator(who)) as connection:
        rows = audit.page(connection, tenant_of(who), limit + 1, after, since)
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
