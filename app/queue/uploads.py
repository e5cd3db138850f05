"""Uploaded files that wait to be read into a bank."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from app.errors import NotFoundError
from app.queue import outbox
from app.queue.outbox import Work


@dataclass(frozen=True)
class Upload:
    """A file that is to be stored in a bank in the name of `principal`, None: who is gone.

    access: the list of its documents that bring none; None: everyone, or what a known one has.
    """

    filename: str
    principal: int | None
    attributes: dict[str, Any]
    access: list[str] | None


def awaited(connection: Connection, work: Work) -> Upload:
    """The file that work is about. Raises NotFoundError where it was cancelled or taken away
    meanwhile."""
    row = connection.execute(
        _AWAITED, {"tenant": work.tenant, "bank": work.bank, "file": work.file}
    ).one_or_none()
    if row is None:
        raise NotFoundError("the file was taken away meanwhile")
    return Upload(*row)


_AWAITED = text(
    "SELECT f.filename, b.principal_id, b.attributes, b.access FROM bank_file b JOIN file f"
    " ON f.tenant_id = b.tenant_id AND f.id = b.file_id"
    " WHERE b.tenant_id = :tenant AND b.bank_id = :bank AND b.file_id = :file"
    " AND b.state = 'storing'"
)


def finish(
    connection: Connection, work: Work, error: str | None = None, code: str | None = None
) -> bool:
    """Note that a file was stored, or why not all of it was; False where the lease is lost."""
    if not outbox.take(connection, work):
        return False
    outbox.finish_file(connection, work, error, code)
    return True
