"""Files of a vector store, and the documents of its bank that came in another way."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from app.access.lists import checked_access
from app.api.http.caller import MayRead, MayWrite
from app.api.http.errors import responses
from app.api.http.fields import (
    Attributes,
    Chunking,
    FileId,
    StaticChunking,
    Storable,
    check_chunking,
)
from app.api.http.paging import Item, Page, Paging
from app.api.openai.files import administers
from app.api.openai.vector_stores import known
from app.bank import attachments, documents, entries, uploads
from app.bank.entries import Entry
from app.db.session import Asker, transaction

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

Status = Literal["in_progress", "completed", "failed", "cancelled"]


class LastError(BaseModel):
    """Why a file, or a part of it, is not in the bank."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class StoreFile(Item):
    """A file in a vector store. A document that is no uploaded file has an id that begins with
    doc-."""

    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: Status
    last_error: LastError | None
    usage_bytes: int
    attributes: dict[str, str | int | float | bool]
    chunking_strategy: StaticChunking = StaticChunking()

    @classmethod
    def of(cls, entry: Entry, store: str) -> "StoreFile":
        error = None
        if entry.error is not None and entry.status == "failed":
            error = LastError.model_validate({"code": entry.error_code, "message": entry.error})
        return cls(
            id=entry.id,
            created_at=int(entry.created_at.timestamp()),
            vector_store_id=store,
            status=entry.status,
            last_error=error,
            usage_bytes=entry.bytes,
            attributes=attributes_of(entry.attributes),
        )


def attributes_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Those fields of a document's metadata that can be attributes: text, numbers, booleans."""
    return {key: value for key, value in metadata.items() if isinstance(value, str | int | float)}


class StoreFileDeleted(Item):
    """What a file gave is forgotten. The file itself is still there."""

    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: Literal[True] = True


AccessEntry = Annotated[Storable, Field(max_length=300)]
"""everyone, principal:NAME or group:NAME."""


class FileOptions(BaseModel):
    """allow: who may read the documents: principal:NAME, group:NAME, everyone. Without it everyone,
    or what the file itself says (JSONL)."""

    model_config = ConfigDict(extra="forbid")

    allow: Annotated[list[AccessEntry], Field(max_length=100)] | None = None

    def listed(self, connection: Connection, asker: Asker) -> list[str] | None:
        """Raises UsageError and NotFoundError for entries that mean nobody."""
        if self.allow is None:
            return None
        return checked_access(connection, asker.tenant or 0, self.allow)


class AttachFile(BaseModel):
    """An uploaded file that a bank is to have."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None
    membank: FileOptions = FileOptions()


class UpdateFile(BaseModel):
    """Attributes in place of those that there are."""

    attributes: Attributes | None


class StoreFilePaging(Paging):
    """Files of a status, or all."""

    filter: Status | None = None


class Content(BaseModel):
    """The text of a document."""

    type: Literal["text"] = "text"
    text: str


class ContentPage(BaseModel):
    """The texts of all documents that a file gave."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[Content]
    has_more: Literal[False] = False
    next_page: None = None


@router.post("/{vector_store_id}/files", responses=responses(404))
def attach_file(vector_store_id: str, body: AttachFile, who: MayWrite) -> StoreFile:
    """Put a file into a bank. Workers read it and store and encode what it holds."""
    check_chunking(body.chunking_strategy)
    writer = who.asker.in_role("worker")
    with transaction(writer) as connection:
        bank = known(connection, writer, vector_store_id)
        [file] = uploads.find(connection, writer, [body.file_id], administers(who))
        listed = body.membank.listed(connection, writer)
        given = [(file.id, body.attributes or {})]
        attachments.attach(connection, writer, bank.id, given, listed)
    with transaction(who.asker) as connection:  # it tells of what the caller may read
        entry = entries.find(connection, who.asker, bank.id, file.id)
    return StoreFile.of(entry, vector_store_id)


@router.get("/{vector_store_id}/files", responses=responses(404))
def list_store_files(
    vector_store_id: str, who: MayRead, paging: Annotated[StoreFilePaging, Query()]
) -> Page[StoreFile]:
    """Files and documents of a vector store that the caller may see."""
    with transaction(who.asker) as connection:
        bank = known(connection, who.asker, vector_store_id)
        found, more = entries.listing(
            connection, who.asker, bank.id, paging.window(), paging.filter
        )
    return Page.of([StoreFile.of(each, vector_store_id) for each in found], more)


@router.get("/{vector_store_id}/files/{file_id}", responses=responses(404))
def get_store_file(vector_store_id: str, file_id: FileId, who: MayRead) -> StoreFile:
    """One of them."""
    with transaction(who.asker) as connection:
        _, entry = _entry(connection, who.asker, vector_store_id, file_id)
    return StoreFile.of(entry, vector_store_id)


@router.post("/{vector_store_id}/files/{file_id}", responses=responses(404))
def update_store_file(
    vector_store_id: str, file_id: FileId, body: UpdateFile, who: MayWrite
) -> StoreFile:
    """Change the attributes. Nothing is encoded again."""
    with transaction(who.asker) as connection:  # only what the caller may read is there to change
        bank, entry = _entry(connection, who.asker, vector_store_id, file_id)
    former, writer = list(attributes_of(entry.attributes)), who.asker.in_role("worker")
    with transaction(writer) as connection:
        attachments.set_attributes(connection, writer, bank, entry, former, body.attributes or {})
    with transaction(who.asker) as connection:
        return StoreFile.of(entries.find(connection, who.asker, bank, file_id), vector_store_id)


@router.delete("/{vector_store_id}/files/{file_id}", responses=responses(404))
def detach_file(vector_store_id: str, file_id: FileId, who: MayWrite) -> StoreFileDeleted:
    """Forget what a file gave, with all that was made of it."""
    with transaction(who.asker) as connection:  # only what the caller may read is there to forget
        bank, entry = _entry(connection, who.asker, vector_store_id, file_id)
    writer = who.asker.in_role("worker")
    with transaction(writer) as connection:
        deleted = attachments.detach(connection, writer, bank, entry)
    documents.uncached(writer.tenant or 0, *deleted)
    return StoreFileDeleted(id=entry.id)


@router.get("/{vector_store_id}/files/{file_id}/content", responses=responses(404))
def get_store_file_content(vector_store_id: str, file_id: FileId, who: MayRead) -> ContentPage:
    """The texts of its documents, as they were read."""
    with transaction(who.asker) as connection:
        bank, entry = _entry(connection, who.asker, vector_store_id, file_id)
        texts = entries.texts(connection, who.asker, bank, entry)
    return ContentPage(data=[Content(text=text) for text in texts])


def _entry(connection: Connection, asker: Asker, store: str, id: str) -> tuple[int, Entry]:
    bank = known(connection, asker, store)
    return bank.id, entries.find(connection, asker, bank.id, id)
