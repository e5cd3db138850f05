"""Vector stores: a vector store is a bank."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.access.identity import Identity
from app.api.http.caller import Reading, Writing
from app.api.http.errors import responses
from app.api.http.fields import (
    Chunking,
    Expiry,
    FileId,
    Metadata,
    Name,
    check_chunking,
    check_expiry,
)
from app.api.http.paging import Item, Page, Paging
from app.api.openai.files import sight
from app.bank import attachments, banks, entries, uploads
from app.bank.banks import Known
from app.bank.entries import Totals
from app.bank.find import Bank, bank_now
from app.errors import NotFoundError
from app.queue import status
from app.runtime.identity import profile

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])
_NUMBER = re.compile(r"vs_([0-9]{1,18})")


class FileCounts(BaseModel):
    """Files by their status."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int

    @classmethod
    def of(cls, counts: dict[str, int]) -> "FileCounts":
        return cls(**counts, total=sum(counts.values()))


class Progress(BaseModel):
    """How far a bank is, of what the caller may read. Units of work: a document to be split, a
    chunk to be encoded. `throughput`: memories a second over the last minute; `time_left`:
    seconds."""

    pending: int
    encoding: int
    ready: int
    failed: int
    coverage: float | None
    throughput: float | None
    time_left: float | None


class VectorStore(Item):
    """A bank. Counts and bytes are of what the caller may read."""

    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    status: Literal["in_progress", "completed"]
    usage_bytes: int
    file_counts: FileCounts
    metadata: dict[str, Any]
    last_active_at: int | None = None
    expires_after: None = None
    expires_at: None = None
    membank: Progress | None = None

    @classmethod
    def of(cls, bank: Any, totals: Totals, progress: Progress | None = None) -> "VectorStore":
        """Of a Known bank, or a row with its fields."""
        return cls(
            id=f"vs_{bank.id}",
            created_at=int(bank.created_at.timestamp()),
            name=bank.name,
            status="in_progress" if totals.counts["in_progress"] else "completed",
            usage_bytes=totals.bytes,
            file_counts=FileCounts.of(totals.counts),
            metadata=bank.metadata,
            membank=progress,
        )


class VectorStoreDeleted(Item):
    """A bank that is no more."""

    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: Literal[True] = True


class StoreOptions(BaseModel):
    """closed: nobody but the maker reads the bank until someone is let in."""

    model_config = ConfigDict(extra="forbid")

    closed: bool = False


class CreateStore(BaseModel):
    """A new bank. Without a name it gets one; the name is the model's for chat completions."""

    name: Name | None = None
    metadata: Metadata | None = None
    file_ids: Annotated[list[FileId], Field(max_length=500)] | None = None
    chunking_strategy: Chunking | None = None
    expires_after: Expiry = None
    membank: StoreOptions = StoreOptions()


class UpdateStore(BaseModel):
    """What is not given stays."""

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: Expiry = None


def known(who: Identity, id: str) -> Known:
    """The bank that a vector store's id means. Raises NotFoundError also where it is closed to the
    caller."""
    number = _NUMBER.fullmatch(id)
    if number is None:
        raise NotFoundError(f"there is no vector store {id!r}, or it is closed to you")
    return banks.find(who.asker, int(number[1]))


def bank_of(who: Identity, id: str) -> Bank:
    """The same with its profile."""
    return bank_now(who.asker.tenant or 0, known(who, id).id)


@router.post("", responses=responses(404))
def create_store(body: CreateStore, who: Writing) -> VectorStore:
    """Make a bank, whose admin the caller is, and put files into it."""
    check_expiry(body.expires_after)
    check_chunking(body.chunking_strategy)
    given = uploads.find(sight(who), body.file_ids or [])
    made = banks.make(
        who.asker,
        who.tenant,
        who.principal,
        body.name,
        (profile().id, profile().json()),
        body.metadata or {},
        body.membank.closed,
    )
    attachments.attach(who.asker, made.id, [(file.id, {}) for file in given])
    return _whole(who, made)


@router.get("", responses=responses())
def list_stores(who: Reading, paging: Annotated[Paging, Query()]) -> Page[VectorStore]:
    """The banks in which the caller has a role."""
    found = banks.listing(who.asker, paging.window("vs_"))
    totals = entries.totals(who.asker, [int(row.id) for row in found.rows])
    stores = [VectorStore.of(row, totals[int(row.id)]) for row in found.rows]
    return Page.of(stores, found.has_more)


@router.get("/{vector_store_id}", responses=responses(404))
def get_store(vector_store_id: str, who: Reading) -> VectorStore:
    """One of them, and how far it is encoded."""
    return _whole(who, known(who, vector_store_id))


@router.post("/{vector_store_id}", responses=responses(404))
def update_store(vector_store_id: str, body: UpdateStore, who: Writing) -> VectorStore:
    """Change name or metadata, which takes the role of an admin of the bank."""
    check_expiry(body.expires_after)
    bank = known(who, vector_store_id)
    return _whole(who, banks.change(who.asker, bank.id, body.name, body.metadata))


@router.delete("/{vector_store_id}", responses=responses(404))
def delete_store(vector_store_id: str, who: Writing) -> VectorStoreDeleted:
    """Delete a bank with all that it holds, which takes the role of an admin of it. Files stay."""
    bank = known(who, vector_store_id)
    banks.remove(who.asker, bank.id)
    return VectorStoreDeleted(id=f"vs_{bank.id}")


def _whole(who: Identity, bank: Known) -> VectorStore:
    totals = entries.totals(who.asker, [bank.id])[bank.id]
    return VectorStore.of(bank, totals, Progress(**status.of_bank(who.asker, bank.id)))
