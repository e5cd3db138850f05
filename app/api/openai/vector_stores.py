"""Vector stores: a vector store is a bank."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from app.api.http.caller import MayRead, MayWrite
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
from app.api.openai.files import administers
from app.bank import attachments, banks, documents, entries, uploads
from app.bank.banks import Known
from app.bank.entries import Totals
from app.db.session import Asker, transaction
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


def known(connection: Connection, asker: Asker, id: str) -> Known:
    """The bank that a vector store's id means. Raises NotFoundError also where it is closed to the
    asker."""
    return banks.find(connection, asker, number_of(id))


def number_of(id: str) -> int:
    """The number of the bank that a vector store's id means. Raises NotFoundError."""
    number = _NUMBER.fullmatch(id)
    if number is None:
        raise NotFoundError(f"there is no vector store {id!r}, or it is closed to you")
    return int(number[1])


@router.post("", responses=responses(404))
def create_store(body: CreateStore, who: MayWrite) -> VectorStore:
    """Make a bank, whose admin the caller is, and put files into it."""
    check_expiry(body.expires_after)
    check_chunking(body.chunking_strategy)
    encoder = (profile().id, profile().json())
    maker = who.asker.in_role("admin")  # which alone makes banks; what is new is the caller's
    with transaction(maker) as connection:
        given = uploads.find(connection, maker, body.file_ids or [], administers(who))
        made = banks.make(
            connection, maker, body.name, encoder, body.metadata or {}, body.membank.closed
        )
        attachments.attach(connection, maker, made.id, [(file.id, {}) for file in given])
        return _whole(connection, maker, made)


@router.get("", responses=responses())
def list_stores(who: MayRead, paging: Annotated[Paging, Query()]) -> Page[VectorStore]:
    """The banks in which the caller has a role."""
    with transaction(who.asker) as connection:
        found = banks.listing(connection, who.asker, paging.window("vs_"))
        totals = entries.totals(connection, who.asker, [int(row.id) for row in found.rows])
    stores = [VectorStore.of(row, totals[int(row.id)]) for row in found.rows]
    return Page.of(stores, found.has_more)


@router.get("/{vector_store_id}", responses=responses(404))
def get_store(vector_store_id: str, who: MayRead) -> VectorStore:
    """One of them, and how far it is encoded."""
    with transaction(who.asker) as connection:
        return _whole(connection, who.asker, known(connection, who.asker, vector_store_id))


@router.post("/{vector_store_id}", responses=responses(404))
def update_store(vector_store_id: str, body: UpdateStore, who: MayWrite) -> VectorStore:
    """Change name or metadata, which takes the role of an admin of the bank."""
    check_expiry(body.expires_after)
    id, admin = number_of(vector_store_id), who.asker.in_role("admin")
    with transaction(admin) as connection:
        changed = banks.change(connection, admin, id, body.name, body.metadata)
    with transaction(who.asker) as connection:  # counts are of what the caller may read
        return _whole(connection, who.asker, changed)


@router.delete("/{vector_store_id}", responses=responses(404))
def delete_store(vector_store_id: str, who: MayWrite) -> VectorStoreDeleted:
    """Delete a bank with all that it holds, which takes the role of an admin of it. Files stay."""
    id, admin = number_of(vector_store_id), who.asker.in_role("admin")
    with transaction(admin) as connection:
        deleted = banks.remove(connection, admin, id)
    documents.uncached(admin.tenant or 0, *deleted)
    return VectorStoreDeleted(id=f"vs_{id}")


def _whole(connection: Connection, asker: Asker, bank: Known) -> VectorStore:
    totals = entries.totals(connection, asker, [bank.id])[bank.id]
    return VectorStore.of(bank, totals, Progress(**status.of_bank(connection, asker, bank.id)))
