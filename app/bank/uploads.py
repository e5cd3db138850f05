"""Files as they were uploaded: for who uploaded them, and for administrators of the tenant.

In a transaction of the role app a principal sees its own files, in one of the role worker all of
its tenant's.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from app.access.audit import note
from app.db.paging import Rows, Window, page
from app.db.session import Asker, driver_of
from app.errors import NotFoundError


@dataclass(frozen=True)
class File:
    """An uploaded file without its content; `bytes` is its size."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: datetime


_COLUMNS = "id, filename, purpose, bytes, created_at"


def add(connection: Connection, asker: Asker, filename: str, purpose: str, content: bytes) -> File:
    """Keep a file for the principal that asks; a worker's to do."""
    values = {
        "tenant": asker.tenant,
        "id": f"file-{secrets.token_urlsafe(18)}",
        "principal": asker.principal,
        "filename": filename,
        "purpose": purpose,
        "bytes": len(content),
        "content": content,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    row = connection.execute(_ADD, values).one()
    note(connection, asker.tenant, "upload", detail={"file": row.id, "bytes": row.bytes})
    return File(*row)


_ADD = text(
    "INSERT INTO file (tenant_id, id, principal_id, filename, purpose, bytes, content, sha256)"  # noqa: S608 (words of ours)
    " VALUES (:tenant, :id, :principal, :filename, :purpose, :bytes, :content, :sha256)"
    f" RETURNING {_COLUMNS}"
)


def find(connection: Connection, asker: Asker, ids: Sequence[str], every: bool) -> list[File]:
    """Files by their ids, in that order: the asker's own, or `every` one of the tenant.

    In a transaction of any role. Raises NotFoundError that names the first it lacks.
    """
    rows = connection.execute(
        _FIND,
        {
            "tenant": asker.tenant,
            "by": asker.principal,
            "every": every,
            "ids": [id.replace("\x00", "\ufffd") for id in ids],
        },
    )
    known = {row.id: File(*row) for row in rows}
    for id in ids:
        if id not in known:
            raise NotFoundError(f"there is no file {id!r}, or it is not yours")
    return [known[id] for id in ids]


_FIND = text(
    f"SELECT {_COLUMNS} FROM file WHERE tenant_id = :tenant AND id = ANY(:ids)"  # noqa: S608 (words of ours)
    " AND (:every OR principal_id = :by)"
)


def listing(
    connection: Connection, asker: Asker, window: Window, purpose: str | None = None
) -> Rows:
    """A page of files, whose rows have the fields of File."""
    rows = f"SELECT {_COLUMNS} FROM file WHERE tenant_id = :tenant"  # noqa: S608 (words of ours)
    values = {"tenant": asker.tenant, "purpose": purpose}
    return page(connection, rows, values, window, "r.purpose = :purpose" if purpose else "")


def content(connection: Connection, asker: Asker, id: str) -> bytes:
    """What was uploaded. Raises NotFoundError."""
    # Results as text would be hex, five times slower to receive.
    with driver_of(connection).cursor(binary=True) as cursor:
        row = cursor.execute(
            "SELECT content FROM file WHERE tenant_id = %s AND id = %s",
            (asker.tenant, id.replace("\x00", "\ufffd")),
        ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no file {id!r}, or it is not yours")
    return bytes(row[0])
