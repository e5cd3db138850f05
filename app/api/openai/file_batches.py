"""Many files into a vector store in one call."""

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection

from app.api.http.caller import MayRead, MayWrite
from app.api.http.errors import responses
from app.api.http.fields import Attributes, Chunking, FileId, check_chunking
from app.api.http.paging import Item, Page
from app.api.openai.files import administers
from app.api.openai.store_files import FileOptions, StoreFile, StoreFilePaging
from app.api.openai.vector_stores import FileCounts, known
from app.bank import attachments, entries, uploads
from app.db.session import Asker, transaction

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])


class Batch(Item):
    """Files that were put into a vector store together."""

    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled"]
    file_counts: FileCounts


class BatchFile(BaseModel):
    """A file with attributes of its own."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class CreateBatch(BaseModel):
    """Files by their ids, all with the same attributes, or each with its own."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "array"}}}
                for name in ("file_ids", "files")
            ]
        }
    )

    file_ids: Annotated[list[FileId], Field(min_length=1, max_length=2000)] | None = None
    files: Annotated[list[BatchFile], Field(min_length=1, max_length=2000)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None
    membank: FileOptions = FileOptions()

    @model_validator(mode="after")
    def _one_of_both(self) -> "CreateBatch":
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("give file_ids or files, one of them")
        return self

    @property
    def members(self) -> list[BatchFile]:
        """Each file once."""
        found = self.files or [
            BatchFile(
                file_id=id, attributes=self.attributes, chunking_strategy=self.chunking_strategy
            )
            for id in self.file_ids or []
        ]
        return list({each.file_id: each for each in found}.values())


@router.post("/{vector_store_id}/file_batches", responses=responses(404))
def create_batch(vector_store_id: str, body: CreateBatch, who: MayWrite) -> Batch:
    """Put many files into a bank. Workers read them and store and encode what they hold."""
    members = body.members
    for each in members:
        check_chunking(each.chunking_strategy)
    batch, writer = f"vsfb_{secrets.token_urlsafe(18)}", who.asker.in_role("worker")
    with transaction(writer) as connection:
        bank = known(connection, writer, vector_store_id)
        ids = [each.file_id for each in members]
        found = uploads.find(connection, writer, ids, administers(who))
        listed = body.membank.listed(connection, writer)
        given = [
            (file.id, each.attributes or {}) for file, each in zip(found, members, strict=True)
        ]
        attachments.attach(connection, writer, bank.id, given, listed, batch)
    with transaction(who.asker) as connection:  # it tells of what the caller may read
        return _batch(connection, who.asker, bank.id, batch)


@router.get("/{vector_store_id}/file_batches/{batch_id}", responses=responses(404))
def get_batch(vector_store_id: str, batch_id: FileId, who: MayRead) -> Batch:
    """How far a batch is."""
    with transaction(who.asker) as connection:
        bank = known(connection, who.asker, vector_store_id)
        return _batch(connection, who.asker, bank.id, batch_id)


@router.post("/{vector_store_id}/file_batches/{batch_id}/cancel", responses=responses(404))
def cancel_batch(vector_store_id: str, batch_id: FileId, who: MayWrite) -> Batch:
    """Stop what has not been done. What is encoded stays, and so does what a worker holds."""
    with transaction(who.asker) as connection:  # only what the caller may read is there to cancel
        bank = known(connection, who.asker, vector_store_id).id
        entries.batch_totals(connection, who.asker, bank, batch_id)
    admin = who.asker.in_role("admin")  # which alone cancels work
    with transaction(admin) as connection:
        attachments.cancel_batch(connection, admin, bank, batch_id)
    with transaction(who.asker) as connection:
        return _batch(connection, who.asker, bank, batch_id)


@router.get("/{vector_store_id}/file_batches/{batch_id}/files", responses=responses(404))
def list_batch_files(
    vector_store_id: str,
    batch_id: FileId,
    who: MayRead,
    paging: Annotated[StoreFilePaging, Query()],
) -> Page[StoreFile]:
    """The files of a batch."""
    with transaction(who.asker) as connection:
        bank = known(connection, who.asker, vector_store_id).id
        entries.batch_totals(connection, who.asker, bank, batch_id)
        found, more = entries.listing(
            connection, who.asker, bank, paging.window(), paging.filter, batch_id
        )
    return Page.of([StoreFile.of(each, vector_store_id) for each in found], more)


def _batch(connection: Connection, asker: Asker, bank: int, batch: str) -> Batch:
    began, counts = entries.batch_totals(connection, asker, bank, batch)
    status: Literal["in_progress", "completed", "cancelled"] = "completed"
    if counts["in_progress"]:
        status = "in_progress"
    elif counts["cancelled"]:
        status = "cancelled"
    return Batch(
        id=batch,
        created_at=int(began.timestamp()),
        vector_store_id=f"vs_{bank}",
        status=status,
        file_counts=FileCounts.of(counts),
    )
