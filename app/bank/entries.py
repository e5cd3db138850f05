"""What a bank holds, as entries: uploaded files and what each gave, documents that are no file's.

What an asker sees is for the database's policies to say.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.db.paging import Window, page
from app.db.session import Asker
from app.errors import NotFoundError

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


_ID = (
    "coalesce(file_id, 'doc-' || rtrim(translate(encode(convert_to(document_id, 'UTF8'), 'base64'),"
    " '+/' || chr(10), '-_'), '='))"
)
_ENTRIES = (
    "SELECT file_id, document_id, created_at, attributes, status, error, error_code, batch_id,"  # noqa: S608 (words of ours)
    f" {_ID} AS id FROM bank_entry WHERE tenant_id = :tenant AND bank_id = :bank"
)


def listing(
    connection: Connection,
    asker: Asker,
    bank: int,
    window: Window,
    status: str | None = None,
    batch: str | None = None,
) -> tuple[list[Entry], bool]:
    """A page of a bank's entries, and whether there are more; of one batch, or all."""
    values = {"tenant": asker.tenant, "bank": bank, "status": status, "batch": batch}
    rows = _ENTRIES + (" AND batch_id = :batch" if batch else "")
    found = page(connection, rows, values, window, "r.status = :status" if status else "")
    return _entries(connection, values, found.rows), found.has_more


def find(connection: Connection, asker: Asker, bank: int, id: str) -> Entry:
    """One entry. Raises NotFoundError, also for what the asker may not see."""
    values = {"tenant": asker.tenant, "bank": bank, **_named(id)}
    where = " AND file_id = :file" if values["file"] else " AND document_id = :document"
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


def totals(connection: Connection, asker: Asker, banks: Sequence[int]) -> dict[int, Totals]:
    """By bank, of what the asker may see."""
    values = {"tenant": asker.tenant, "banks": list(banks)}
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


def batch_totals(
    connection: Connection, asker: Asker, bank: int, batch: str
) -> tuple[datetime, dict[str, int]]:
    """When a batch was made, and its files by status. Raises NotFoundError."""
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


def texts(connection: Connection, asker: Asker, bank: int, entry: Entry) -> list[str]:
    """The texts of what an entry gave that the asker may read."""
    return list(
        connection.execute(
            text(f"SELECT text {DOCUMENTS} ORDER BY id"),
            values_of(asker, bank, entry),
        ).scalars()
    )


def metadata(
    connection: Connection, asker: Asker, bank: int, documents: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By document, of those that the asker may read."""
    rows = connection.execute(
        text(
            "SELECT id, metadata FROM document"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND id = ANY(:ids)"
        ),
        {"tenant": asker.tenant, "bank": bank, "ids": list(documents)},
    )
    return {row.id: row.metadata for row in rows}


DOCUMENTS = (
    "FROM document WHERE tenant_id = :tenant AND bank_id = :bank"
    " AND (file_id = :file OR (file_id IS NULL AND id = :document))"
)


def values_of(asker: Asker, bank: int, entry: Entry) -> dict[str, Any]:
    return {
        "tenant": asker.tenant,
        "bank": bank,
        "file": entry.file,
        "document": entry.document,
        "by": asker.principal,
    }
