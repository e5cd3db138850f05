"""Files in a bank: put there, changed, taken away, and who may do that; a worker's to do.

To change an entry takes the role of a writer, and that the asker put the file there or may read all
that it gave.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from app.access.audit import note
from app.bank import documents
from app.bank.documents import Deleted
from app.bank.entries import DOCUMENTS, Entry, values_of
from app.bank.roles import BankRole, require
from app.db.session import Asker
from app.errors import ForbiddenError, NotFoundError

Attributes = Mapping[str, Any]


def attach(
    connection: Connection,
    asker: Asker,
    bank: int,
    files: Sequence[tuple[str, Attributes]],
    access: Sequence[str] | None = None,
    batch: str | None = None,
) -> None:
    """Put files with their attributes into a bank: a worker reads them and stores what they hold.

    access: as Upload has it. Raises ForbiddenError where the asker is no writer of it,
    NotFoundError for a file that is deleted meanwhile.
    """
    rows = [
        {
            "tenant": asker.tenant,
            "bank": bank,
            "file": file,
            "by": asker.principal,
            "batch": batch,
            "attributes": attributes,
            "access": None if access is None else list(access),
        }
        for file, attributes in files
    ]
    if not rows:
        return
    require(connection, bank, BankRole.WRITER)
    try:
        connection.execute(_ATTACH, rows)
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != "23503":
            raise
        raise NotFoundError("the bank or a file was deleted meanwhile") from None


_ATTACH = text(
    "INSERT INTO bank_file (tenant_id, bank_id, file_id, principal_id, batch_id, attributes,"
    " access) VALUES (:tenant, :bank, :file, :by, :batch, :attributes, :access)"
    " ON CONFLICT (tenant_id, bank_id, file_id) DO UPDATE SET principal_id = excluded.principal_id,"
    " batch_id = excluded.batch_id, attributes = excluded.attributes,"
    " access = excluded.access, state = 'storing',"
    " error_code = NULL, error = NULL, created_at = now()"
).bindparams(bindparam("attributes", type_=JSONB))


def cancel_batch(connection: Connection, asker: Asker, bank: int, batch: str) -> None:
    """Store none of a batch's files any more, and encode none of what waits; for the role admin.

    Raises ForbiddenError where the asker is no writer of the bank.
    """
    values = {"tenant": asker.tenant, "bank": bank, "batch": batch}
    require(connection, bank, BankRole.WRITER)
    connection.execute(_CANCEL_STORING, values)
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
    connection: Connection,
    asker: Asker,
    bank: int,
    entry: Entry,
    former: Sequence[str],
    attributes: Attributes,
) -> None:
    """Put attributes in place of those of the names `former`, also in the documents' metadata.

    Nothing is encoded again. Raises ForbiddenError.
    """
    held = _changeable(connection, asker, bank, entry)
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


def detach(connection: Connection, asker: Asker, bank: int, entry: Entry) -> Deleted:
    """Forget what an entry gave, with all that was made of it. The file stays where it was
    uploaded. `documents.uncached` is to follow. Raises ForbiddenError."""
    tenant = asker.tenant or 0
    held = _changeable(connection, asker, bank, entry)
    deleted = documents.delete(connection, tenant, [(bank, id) for id in held])
    connection.execute(
        text(
            "DELETE FROM bank_file"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND file_id = :file"
        ),
        {"tenant": tenant, "bank": bank, "file": entry.file},
    )
    return deleted


def withdraw(connection: Connection, asker: Asker, file: str, administers: bool) -> Deleted:
    """Delete a file that the asker may see, and what it gave to any bank.

    `documents.uncached` is to follow.

    Raises ForbiddenError where it is in a bank whose writer the asker is not, unless it
    `administers` the tenant.
    """
    tenant = asker.tenant or 0
    values = {"tenant": tenant, "file": file}
    held = connection.execute(_OF_FILE, values).all()
    banks = connection.execute(
        text("SELECT bank_id FROM bank_file WHERE tenant_id = :tenant AND file_id = :file"),
        values,
    ).scalars()
    for bank in banks.all() if not administers else ():
        require(connection, bank, BankRole.WRITER)
    deleted = documents.delete(connection, tenant, [(row.bank_id, row.id) for row in held])
    connection.execute(text("DELETE FROM file WHERE tenant_id = :tenant AND id = :file"), values)
    note(connection, tenant, "delete file", detail={"file": file})
    return deleted


_OF_FILE = text(
    "SELECT bank_id, id FROM document WHERE tenant_id = :tenant AND file_id = :file"
    " AND bank_id IN (SELECT bank_id FROM bank_file"
    " WHERE tenant_id = :tenant AND file_id = :file) ORDER BY bank_id, id FOR UPDATE"
)


def _changeable(connection: Connection, asker: Asker, bank: int, entry: Entry) -> list[str]:
    """Ids of an entry's documents, locked. Raises ForbiddenError where they are not the asker's to
    change."""
    require(connection, bank, BankRole.WRITER)
    values = values_of(asker, bank, entry)
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
    f"SELECT id, access && (SELECT current_readers()) AS listed {DOCUMENTS} ORDER BY id FOR UPDATE"
)
