"""Files in a bank: what each gave, how far that is, and who may change it.

A document that came in another way is an entry of its own. What an asker sees is for the database's
policies to say; to change it takes the role of a writer, and that the asker put the file there or
may read all that it gave.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from app.bank import documents
from app.bank.audit import note
from app.bank.paging import Window, page
from app.bank.roles import Role, require
from app.bank.session import Asker, transaction
from app.errors import ForbiddenError, NotFoundError

Attributes = Mapping[str, Any]
STATES = ("in_progress", "completed", "failed", "cancelled")


@dataclass(frozen=True)
class Entry:
    """A file of a bank, or a document that is no file's: one of `file` and `document` is None.

    attributes: of a document all of its metadata. bytes: of its memories as they are stored.
    """

    file: str | None
    document: str | None
    created_at: datetime
    attributes: dict[str, Any]
    status: str
    error: str | None
    error_code: str
    bytes: int

    @property
    def id(self) -> str:
        return self.file or entry_id(self.document or "")


def entry_id(document: str) -> str:
    """The id that a document which is no file's has as an entry."""
    return "doc-" + base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def _named(id: str) -> dict[str, str | None]:
    """The file or the document that an entry's id means. Raises NotFoundError."""
    if not id.startswith("doc-"):
        return {"file": id.replace("\x00", "\ufffd"), "document": None}
    code = id.removeprefix("doc-")
    try:
        document = base64.b64decode(code + "=" * (-len(code) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise NotFoundError(f"there is no file {id!r} in this bank") from None
    return {"file": None, "document": document.replace("\x00", "\ufffd")}


def attach(
    asker: Asker, bank: int, files: Sequence[tuple[str, Attributes]], batch: str | None = None
) -> None:
    """Note files, with their attributes, that are about to be stored in a bank.

    Raises ForbiddenError where the asker is no writer of it, NotFoundError for a file that is
    deleted meanwhile.
    """
    rows = [
        {
            "tenant": asker.tenant,
            "bank": bank,
            "file": file,
            "by": asker.principal,
            "batch": batch,
            "attributes": attributes,
        }
        for file, attributes in files
    ]
    with _writing(asker) as connection:
        require(connection, bank, Role.WRITER)
        try:
            connection.execute(_ATTACH, rows)
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) != "23503":
                raise
            raise NotFoundError("the bank or a file was deleted meanwhile") from None


_ATTACH = text(
    "INSERT INTO bank_file (tenant_id, bank_id, file_id, principal_id, batch_id, attributes)"
    " VALUES (:tenant, :bank, :file, :by, :batch, :attributes)"
    " ON CONFLICT (tenant_id, bank_id, file_id) DO UPDATE SET principal_id = excluded.principal_id,"
    " batch_id = excluded.batch_id, attributes = excluded.attributes, state = 'storing',"
    " error_code = NULL, error = NULL, created_at = now()"
).bindparams(bindparam("attributes", type_=JSONB))


def is_wanted(asker: Asker, bank: int, file: str) -> bool:
    """Whether a file is still to be stored: neither cancelled nor taken away meanwhile."""
    with _writing(asker) as connection:
        found = connection.execute(
            text(
                "SELECT FROM bank_file WHERE tenant_id = :tenant AND bank_id = :bank"
                " AND file_id = :file AND state = 'storing'"
            ),
            {"tenant": asker.tenant, "bank": bank, "file": file},
        ).one_or_none()
    return found is not None


def finish(
    asker: Asker, bank: int, file: str, error: str | None = None, code: str | None = None
) -> None:
    """Note that a file was stored, or why not all of it was."""
    with _writing(asker) as connection:
        connection.execute(
            text(
                "UPDATE bank_file SET state = :state, error = :error, error_code = :code"
                " WHERE tenant_id = :tenant AND bank_id = :bank AND file_id = :file"
                " AND state = 'storing'"
            ),
            {
                "state": "stored" if error is None else "failed",
                "tenant": asker.tenant,
                "bank": bank,
                "file": file,
                "error": error,
                "code": code,
            },
        )


_ID = (
    "coalesce(file_id, 'doc-' || rtrim(translate(encode(convert_to(document_id, 'UTF8'), 'base64'),"
    " '+/' || chr(10), '-_'), '='))"
)
_ENTRIES = (
    "SELECT file_id, document_id, created_at, attributes, status, error, error_code, batch_id,"  # noqa: S608 (words of ours)
    f" {_ID} AS id FROM bank_entry WHERE tenant_id = :tenant AND bank_id = :bank"
)


def listing(
    asker: Asker,
    bank: int,
    window: Window,
    status: str | None = None,
    batch: str | None = None,
) -> tuple[list[Entry], bool]:
    """A page of a bank's entries, and whether there are more; of one batch, or all."""
    values = {"tenant": asker.tenant, "bank": bank, "status": status, "batch": batch}
    rows = _ENTRIES + (" AND batch_id = :batch" if batch else "")
    with transaction(asker) as connection:
        found = page(connection, rows, values, window, "r.status = :status" if status else "")
        return _entries(connection, values, found.rows), found.has_more


def find(asker: Asker, bank: int, id: str) -> Entry:
    """One entry. Raises NotFoundError, also for what the asker may not see."""
    values = {"tenant": asker.tenant, "bank": bank, **_named(id)}
    where = " AND file_id = :file" if values["file"] else " AND document_id = :document"
    with transaction(asker) as connection:
        rows = connection.execute(text(_ENTRIES + where), values).all()
        if not rows:
            raise NotFoundError(f"there is no file {id!r} in this bank")
        return _entries(connection, values, rows)[0]


def _entries(connection: Connection, values: Mapping[str, Any], rows: Sequence[Any]) -> list[Entry]:
    sizes = connection.execute(
        _SIZES,
        {
            **values,
            "files": [row.file_id for row in rows if row.file_id],
            "documents": [row.document_id for row in rows if row.document_id],
        },
    )
    size = {(row.file_id, row.document_id): int(row.bytes) for row in sizes}
    return [
        Entry(
            row.file_id,
            row.document_id,
            row.created_at,
            row.attributes,
            row.status,
            row.error,
            row.error_code,
            size.get((row.file_id, row.document_id), 0),
        )
        for row in rows
    ]


_SIZES = text(
    """
    SELECT d.file_id, CASE WHEN d.file_id IS NULL THEN d.id END AS document_id,
           sum(coalesce(b.size, octet_length(b.payload))) AS bytes
    FROM document d
    JOIN memory_key k ON k.tenant_id = d.tenant_id AND k.bank_id = d.bank_id
        AND k.document_id = d.id
    JOIN memory_blob b ON b.tenant_id = k.tenant_id AND b.chunk_id = k.chunk_id
        AND b.profile_id = k.profile_id
    WHERE d.tenant_id = :tenant AND d.bank_id = :bank
        AND (d.file_id = ANY(:files) OR (d.file_id IS NULL AND d.id = ANY(:documents)))
    GROUP BY 1, 2
    """
)


@dataclass(frozen=True)
class Totals:
    """Entries of a bank by status, and the bytes of its memories."""

    counts: dict[str, int]
    bytes: int


def totals(asker: Asker, banks: Sequence[int]) -> dict[int, Totals]:
    """By bank, of what the asker may see."""
    values = {"tenant": asker.tenant, "banks": list(banks)}
    with transaction(asker) as connection:
        counts = connection.execute(_COUNTS, values).all()
        sizes = connection.execute(_BANK_SIZES, values).all()
    size = {row.bank_id: int(row.bytes) for row in sizes}
    return {
        bank: Totals(
            _by_status({row.status: row.count for row in counts if row.bank_id == bank}),
            size.get(bank, 0),
        )
        for bank in banks
    }


def _by_status(counts: Mapping[str, Any]) -> dict[str, int]:
    return {state: int(counts.get(state, 0)) for state in STATES}


_COUNTS = text(
    "SELECT bank_id, status, count(*) AS count FROM bank_entry"
    " WHERE tenant_id = :tenant AND bank_id = ANY(:banks) GROUP BY 1, 2"
)
_BANK_SIZES = text(
    "SELECT k.bank_id, sum(coalesce(b.size, octet_length(b.payload))) AS bytes FROM memory_key k"
    " JOIN memory_blob b USING (tenant_id, chunk_id, profile_id)"
    " WHERE k.tenant_id = :tenant AND k.bank_id = ANY(:banks) GROUP BY 1"
)


def batch_totals(asker: Asker, bank: int, batch: str) -> tuple[datetime, dict[str, int]]:
    """When a batch was made, and its files by status. Raises NotFoundError."""
    with transaction(asker) as connection:
        rows = connection.execute(
            text(
                "SELECT status, count(*) AS count, min(created_at) AS began FROM bank_entry"
                " WHERE tenant_id = :tenant AND bank_id = :bank AND batch_id = :batch GROUP BY 1"
            ),
            {"tenant": asker.tenant, "bank": bank, "batch": batch.replace("\x00", "\ufffd")},
        ).all()
    if not rows:
        raise NotFoundError(f"there is no batch {batch!r} in this bank")
    return min(row.began for row in rows), _by_status({row.status: row.count for row in rows})


def cancel_batch(asker: Asker, bank: int, batch: str) -> None:
    """Store none of a batch's files any more, and encode none of what waits.

    Raises ForbiddenError where the asker is no writer of the bank.
    """
    values = {"tenant": asker.tenant, "bank": bank, "batch": batch}
    with _writing(asker) as connection:
        require(connection, bank, Role.WRITER)
        connection.execute(_CANCEL_STORING, values)
    with transaction(Asker("admin", asker.tenant)) as connection:
        connection.execute(_CANCEL_ENCODING, values)


_CANCEL_STORING = text(
    "UPDATE bank_file SET state = 'cancelled' WHERE tenant_id = :tenant AND bank_id = :bank"
    " AND batch_id = :batch AND state = 'storing'"
)
_CANCEL_ENCODING = text(
    "SELECT count(job_cancel(:tenant, :bank, d.id)) FROM ("
    "SELECT d.id FROM document d JOIN bank_file f ON f.tenant_id = d.tenant_id"
    " AND f.bank_id = d.bank_id AND f.file_id = d.file_id"
    " WHERE f.tenant_id = :tenant AND f.bank_id = :bank AND f.batch_id = :batch ORDER BY d.id) d"
)


def set_attributes(
    asker: Asker, bank: int, entry: Entry, former: Sequence[str], attributes: Attributes
) -> None:
    """Put attributes in place of those of the names `former`, also in the documents' metadata.

    Nothing is encoded again. Raises ForbiddenError.
    """
    with _writing(asker) as connection:
        held = _held(connection, asker, bank, entry)
        values = {
            "tenant": asker.tenant,
            "bank": bank,
            "file": entry.file,
            "ids": held,
            "former": list(former),
            "attributes": attributes,
        }
        connection.execute(_SET_OF_FILE, values)
        connection.execute(_SET_OF_DOCUMENTS, values)


_SET_OF_FILE = text(
    "UPDATE bank_file SET attributes = :attributes"
    " WHERE tenant_id = :tenant AND bank_id = :bank AND file_id = :file"
).bindparams(bindparam("attributes", type_=JSONB))
_SET_OF_DOCUMENTS = text(
    "UPDATE document SET metadata = (metadata - cast(:former AS text[])) || :attributes"
    " WHERE tenant_id = :tenant AND bank_id = :bank AND id = ANY(:ids)"
).bindparams(bindparam("attributes", type_=JSONB))


def detach(asker: Asker, bank: int, entry: Entry) -> None:
    """Forget what an entry gave, with all that was made of it. The file stays where it was
    uploaded. Raises ForbiddenError."""
    tenant = asker.tenant or 0
    with _writing(asker) as connection:
        held = _held(connection, asker, bank, entry)
        deleted = documents.delete(connection, tenant, [(bank, id) for id in held])
        connection.execute(
            text(
                "DELETE FROM bank_file"
                " WHERE tenant_id = :tenant AND bank_id = :bank AND file_id = :file"
            ),
            {"tenant": tenant, "bank": bank, "file": entry.file},
        )
    documents.uncached(tenant, *deleted)


def withdraw(asker: Asker, file: str, administers: bool) -> None:
    """Delete a file that the asker may see, and what it gave to any bank.

    Raises ForbiddenError where it is in a bank whose writer the asker is not, unless it
    `administers` the tenant.
    """
    tenant = asker.tenant or 0
    values = {"tenant": tenant, "file": file}
    with _writing(asker) as connection:
        held = connection.execute(_OF_FILE, values).all()
        banks = connection.execute(
            text("SELECT bank_id FROM bank_file WHERE tenant_id = :tenant AND file_id = :file"),
            values,
        ).scalars()
        for bank in banks.all() if not administers else ():
            require(connection, bank, Role.WRITER)
        deleted = documents.delete(connection, tenant, [(row.bank_id, row.id) for row in held])
        connection.execute(
            text("DELETE FROM file WHERE tenant_id = :tenant AND id = :file"), values
        )
        note(connection, tenant, "delete file", detail={"file": file})
    documents.uncached(tenant, *deleted)


_OF_FILE = text(
    "SELECT bank_id, id FROM document WHERE tenant_id = :tenant AND file_id = :file"
    " AND bank_id IN (SELECT bank_id FROM bank_file"
    " WHERE tenant_id = :tenant AND file_id = :file) ORDER BY bank_id, id FOR UPDATE"
)


def texts(asker: Asker, bank: int, entry: Entry) -> list[str]:
    """The texts of what an entry gave that the asker may read."""
    with transaction(asker) as connection:
        return list(
            connection.execute(
                text(f"SELECT text {_DOCUMENTS} ORDER BY id"),
                _of_entry(asker, bank, entry),
            ).scalars()
        )


@dataclass(frozen=True)
class Origin:
    """The uploaded file that gave a document, if one did, and the document's metadata."""

    file: str | None
    metadata: dict[str, Any]


def origins(asker: Asker, bank: int, ids: Sequence[str]) -> dict[str, Origin]:
    """By document, of those that the asker may read."""
    with transaction(asker) as connection:
        rows = connection.execute(
            text(
                "SELECT id, file_id, metadata FROM document"
                " WHERE tenant_id = :tenant AND bank_id = :bank AND id = ANY(:ids)"
            ),
            {"tenant": asker.tenant, "bank": bank, "ids": list(ids)},
        )
        return {row.id: Origin(row.file_id, row.metadata) for row in rows}


_DOCUMENTS = (
    "FROM document WHERE tenant_id = :tenant AND bank_id = :bank"
    " AND (file_id = :file OR (file_id IS NULL AND id = :document))"
)


def _of_entry(asker: Asker, bank: int, entry: Entry) -> dict[str, Any]:
    return {
        "tenant": asker.tenant,
        "bank": bank,
        "file": entry.file,
        "document": entry.document,
        "by": asker.principal,
    }


def _held(connection: Connection, asker: Asker, bank: int, entry: Entry) -> list[str]:
    """Ids of an entry's documents, locked. Raises ForbiddenError where they are not the asker's to
    change."""
    require(connection, bank, Role.WRITER)
    values = _of_entry(asker, bank, entry)
    rows = connection.execute(_LOCK, values).all()
    mine = connection.execute(
        text(
            "SELECT FROM bank_file WHERE tenant_id = :tenant AND bank_id = :bank"
            " AND file_id = :file AND principal_id = :by"
        ),
        values,
    ).one_or_none()
    if mine is None and not all(row.listed for row in rows):
        raise ForbiddenError(
            f"file {entry.id!r} gave documents that you may not read: who put it here, or an admin"
            " of the bank who is on their lists, may change it"
        )
    return [row.id for row in rows]


_LOCK = text(
    f"SELECT id, access && (SELECT current_readers()) AS listed {_DOCUMENTS} ORDER BY id FOR UPDATE"
)


def _writing(asker: Asker) -> AbstractContextManager[Connection]:
    return transaction(Asker("worker", asker.tenant, asker.principal))
