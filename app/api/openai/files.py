"""Files: kept as they were uploaded, until they are deleted."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field
from sqlalchemy import Connection
from starlette.datastructures import FormData, UploadFile

from app.access.identity import Identity
from app.api.http.caller import MayRead, MayWrite
from app.api.http.errors import responses
from app.api.http.fields import FileId, Storable, check_expiry
from app.api.http.paging import Item, Page, Paging
from app.bank import attachments, documents, uploads
from app.bank.uploads import File
from app.db.session import Asker, transaction
from app.errors import TooLargeError, UsageError
from app.settings import settings

router = APIRouter(prefix="/v1/files", tags=["files"])
_FORM_BYTES = 100_000
_LONGEST_NAME = 255

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileObject(Item):
    """A file without its content."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None

    @classmethod
    def of(cls, file: Any) -> "FileObject":
        """Of a File, or a row with its fields."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at.timestamp()),
            filename=file.filename,
            purpose=file.purpose,
        )


class FileDeleted(Item):
    """A file that is no more, nor anything that it gave to a vector store."""

    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FilePaging(Paging):
    """Files of a purpose, or all."""

    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    purpose: Annotated[Storable, Field(max_length=100)] | None = None


def administers(who: Identity) -> bool:
    """Whether a caller sees all files of its tenant, not its own alone."""
    return "admin" in who.scopes


def _sight(who: Identity) -> Asker:
    """In whose transaction there are the files that a caller sees."""
    return who.asker.in_role("worker") if administers(who) else who.asker


@dataclass(frozen=True)
class _Received:
    filename: str
    purpose: str
    file: BinaryIO


async def _received(request: Request, who: MayWrite) -> AsyncIterator[_Received]:
    """The form, once it is known who sends it. The file is on disk if it is large."""
    form = await request.form(max_files=1, max_fields=10)
    try:
        yield _checked(form)
    finally:
        await form.close()


def _checked(form: FormData) -> _Received:
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise UsageError("the form has no `file`: send multipart/form-data with file and purpose")
    if purpose not in get_args(Purpose):
        raise UsageError(f"`purpose` must be one of {', '.join(get_args(Purpose))}")
    check_expiry(next((key for key in form if key.startswith("expires_after")), None))
    most, name = settings().max_upload_bytes, file.filename or ""
    if (file.size or 0) > most:
        raise TooLargeError(
            f"the file has {file.size:,} bytes, at most {most:,} are taken: split it, or raise"
            " MEMBANK_MAX_UPLOAD_BYTES"
        )
    if not 1 <= len(name) <= _LONGEST_NAME or not _is_text(name):
        raise UsageError(f"the file's name must be 1 to {_LONGEST_NAME} characters of text")
    return _Received(name, str(purpose), file.file)


def _is_text(name: str) -> bool:
    return "\x00" not in name and not any("\ud800" <= c <= "\udfff" for c in name)


def upload(who: MayWrite, received: Annotated[_Received, Depends(_received)]) -> FileObject:
    """Keep a file. Nothing is made of it until it is put into a vector store."""
    content, writer = received.file.read(), who.asker.in_role("worker")
    with transaction(writer) as connection:
        added = uploads.add(connection, writer, received.filename, received.purpose, content)
    return FileObject.of(added)


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
                    },
                }
            }
        },
    }
}


def files(max_bytes: int) -> APIRouter:
    """The route that takes files of up to so many bytes."""
    route = APIRouter(prefix="/v1/files", tags=["files"])
    route.post(
        "", responses=responses(), openapi_extra=_UPLOAD, max_body_size=max_bytes + _FORM_BYTES
    )(upload)
    return route


@router.get("", responses=responses())
def list_files(who: MayRead, paging: Annotated[FilePaging, Query()]) -> Page[FileObject]:
    """The caller's files; with the scope admin those of its tenant."""
    with transaction(_sight(who)) as connection:
        found = uploads.listing(connection, _sight(who), paging.window(), paging.purpose)
    return Page.of([FileObject.of(row) for row in found.rows], found.has_more)


@router.get("/{file_id}", responses=responses(404))
def get_file(file_id: FileId, who: MayRead) -> FileObject:
    """One of them."""
    with transaction(_sight(who)) as connection:
        return FileObject.of(_one(connection, who, file_id))


@router.get(
    "/{file_id}/content",
    responses={**responses(404), 200: {"content": {"application/octet-stream": {}}}},
    response_class=Response,
)
def get_content(file_id: FileId, who: MayRead) -> Response:
    """What was uploaded, byte for byte."""
    with transaction(_sight(who)) as connection:
        file = _one(connection, who, file_id)
        content = uploads.content(connection, _sight(who), file.id)
    return Response(
        content,
        media_type="application/octet-stream",
        headers={
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "x-content-type-options": "nosniff",
        },
    )


@router.delete("/{file_id}", responses=responses(404))
def delete_file(file_id: FileId, who: MayWrite) -> FileDeleted:
    """Delete a file, and forget what it gave to any vector store."""
    writer = who.asker.in_role("worker")
    with transaction(writer) as connection:
        file = _one(connection, who, file_id)
        deleted = attachments.withdraw(connection, writer, file.id, administers(who))
    documents.uncached(writer.tenant or 0, *deleted)
    return FileDeleted(id=file.id)


def _one(connection: Connection, who: Identity, id: str) -> File:
    return uploads.find(connection, who.asker, [id], administers(who))[0]
