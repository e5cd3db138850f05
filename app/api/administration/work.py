"""Jobs: what waits, what is in hand and what failed."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import Connection

from app.access.identity import Identity
from app.api.administration.fields import (
    DocumentId,
    Limit,
    columns,
)
from app.api.administration.operator import administrator, tenant_of
from app.api.http.caller import MayAdminister
from app.api.http.errors import responses
from app.api.http.fields import Name
from app.bank.find import find_bank
from app.db.session import transaction
from app.queue import jobs

router = APIRouter()


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


@router.get("/jobs", responses=responses(404))
def list_jobs(
    who: MayAdminister,
    bank: Annotated[Name | None, Query()] = None,
    document: Annotated[DocumentId | None, Query()] = None,
    state: jobs.State | None = None,
    limit: Limit = 100,
) -> Jobs:
    with transaction(administrator(who)) as connection:
        if bank is not None:
            find_bank(connection, tenant_of(who), bank)
        rows, total = jobs.find(connection, limit, tenant_of(who), bank, document, state)
    return Jobs(data=[Job(**columns(Job, row)) for row in rows], total=total)


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


def _changed(
    change: Callable[[Connection, int, int | None, str | None], int], which: Which, who: Identity
) -> Count:
    with transaction(administrator(who)) as connection:
        bank = None if which.bank is None else find_bank(connection, tenant_of(who), which.bank).id
        return Count(count=change(connection, tenant_of(who), bank, which.document))
