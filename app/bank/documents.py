"""Documents and their chunks: written together, changed by difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from app.bank import profiles
from app.bank.roles import BankRole, on_list, require
from app.db.session import Asker
from app.errors import ForbiddenError, NotFoundError
from app.store.disk import disk


@dataclass(frozen=True)
class Piece:
    """A chunk as the splitter made it; `hash` is over its text."""

    text: str
    heading: str
    start: int
    end: int
    hash: str


@dataclass(frozen=True)
class Draft:
    """A document as it is to be. `access` None keeps a known document's list as it is.

    file: the uploaded file that gives it, which the bank has.
    """

    id: str
    source: str
    title: str
    text: str
    access: Sequence[str] | None
    metadata: dict[str, Any]
    file: str | None = None


@dataclass(frozen=True)
class Stored:
    """What became of a draft: new, changed or unchanged; and how many chunks it has."""

    status: str
    chunks: int


@dataclass(frozen=True)
class Receipt:
    """What a deletion removed, in rows; cache_entries: files of this machine's cache folder."""

    documents: int
    chunks: int
    keys: int
    blobs: int
    queue: int
    cache_entries: int = 0


Deleted = tuple[Receipt, list[int]]
"""What a deletion removed, and the ids of the chunks, for `uncached`."""


def known_hashes(
    connection: Connection, tenant: int, bank: int, documents: Sequence[str]
) -> dict[str, str]:
    """Content hash by document, of those that are stored and whole."""
    rows = connection.execute(
        text(
            "SELECT id, content_hash FROM document WHERE tenant_id = :tenant AND bank_id = :bank"
            " AND id = ANY(:ids) AND revision = split_revision"
        ),
        {"tenant": tenant, "bank": bank, "ids": list(documents)},
    )
    return {row.id: row.content_hash for row in rows}


_UPSERT = text(
    "INSERT INTO document AS d (tenant_id, bank_id, id, source, title, text, access, metadata,"
    " content_hash, split_revision, file_id)"
    " VALUES (:tenant, :bank, :id, :source, :title, :text,"
    " coalesce(cast(:access AS text[]), '{everyone}'), :metadata, '', cast(:with_pieces AS int),"
    " :file)"
    " ON CONFLICT (tenant_id, bank_id, id) DO UPDATE SET source = excluded.source,"
    " title = excluded.title, text = excluded.text, metadata = excluded.metadata,"
    " file_id = excluded.file_id, access = coalesce(cast(:access AS text[]), d.access),"
    " split_revision = CASE WHEN :with_pieces THEN"
    " d.revision + (d.title <> excluded.title OR d.text <> excluded.text)::int"
    " ELSE d.split_revision END"
    " RETURNING revision, (xmax = 0) AS is_new"
).bindparams(bindparam("metadata", type_=JSONB))


def store(
    connection: Connection,
    asker: Asker,
    bank: int,
    draft: Draft,
    pieces: Sequence[Piece] | None,
) -> Stored:
    """Write a document and its chunks, as a worker; triggers queue what is to be encoded.

    `pieces` None says that title and text are those already stored: only list, source and
    metadata change, and nothing is queued. If they are others by now, a worker splits them.
    An asker without a principal is an operator. Raises ForbiddenError where the principal is no
    writer of the bank, cannot read what it would change, or is no admin of the bank and would
    change a list; NotFoundError where bank or file were deleted meanwhile.
    """
    tenant = asker.tenant or 0
    values = {
        "tenant": tenant,
        "bank": bank,
        "id": draft.id,
        "source": draft.source,
        "title": draft.title,
        "text": draft.text,
        "access": None if draft.access is None else list(draft.access),
        "metadata": draft.metadata,
        "file": draft.file,
        "with_pieces": pieces is not None,
    }
    if pieces is not None:
        profiles.hold(connection, tenant, [bank])
    if asker.principal is not None:
        _require_writer(connection, values)
    row = _upserted(connection, values)
    if pieces is None:
        return Stored("unchanged", 0)
    # Against workers that write memories of these chunks now (see outbox.take_all).
    connection.execute(
        text(
            "SELECT FROM document WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
            " FOR UPDATE"
        ),
        values,
    )
    changed = _replace_chunks(connection, tenant, bank, draft.id, pieces)
    status = "new" if row.is_new else "changed" if changed else "unchanged"
    return Stored(status, len(pieces))


def _upserted(connection: Connection, values: dict[str, Any]) -> Row[Any]:
    try:
        return connection.execute(_UPSERT, values).one()
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != "23503":
            raise
        raise NotFoundError(
            f"document {values['id']!r}: its bank or its file was deleted meanwhile"
        ) from None


def read_text(
    connection: Connection, tenant: int, bank: int, document: str
) -> tuple[str, str, int] | None:
    """Title, text and revision of a document, None when it is gone."""
    row = connection.execute(
        text(
            "SELECT title, text, revision FROM document"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
        ),
        {"tenant": tenant, "bank": bank, "id": document},
    ).one_or_none()
    return None if row is None else (row.title, row.text, row.revision)


def apply_split(
    connection: Connection,
    tenant: int,
    bank: int,
    document: str,
    revision: int,
    pieces: Sequence[Piece],
) -> bool:
    """Give a document the chunks of `revision`; False when its text has changed since."""
    held = connection.execute(
        text(
            "SELECT 1 FROM document WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
            " AND revision = :revision FOR UPDATE"
        ),
        {"tenant": tenant, "bank": bank, "id": document, "revision": revision},
    ).scalar()
    if held is None:
        return False
    _replace_chunks(connection, tenant, bank, document, pieces)
    connection.execute(
        text(
            "UPDATE document SET split_revision = :revision"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
        ),
        {"tenant": tenant, "bank": bank, "id": document, "revision": revision},
    )
    return True


def access_of(connection: Connection, tenant: int, bank: int, document: str) -> list[str]:
    """Who may read a document, as an operator sees it. Raises NotFoundError."""
    found: list[str] | None = connection.execute(
        text(
            "SELECT access FROM document WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
        ),
        {"tenant": tenant, "bank": bank, "id": document},
    ).scalar()
    if found is None:
        raise NotFoundError(f"document {document!r} does not exist in this bank")
    return found


def set_access(
    connection: Connection, asker: Asker, bank: int, document: str, access: Sequence[str]
) -> None:
    """Change who may read a document; nobody where the list is empty. Nothing is encoded again.

    An asker without a principal is an operator. Raises NotFoundError, and ForbiddenError where the
    principal is no admin of the bank.
    """
    if asker.principal is not None:
        require(connection, bank, BankRole.ADMIN)
    if not connection.execute(
        text(
            "UPDATE document SET access = :access"
            " WHERE tenant_id = :tenant AND bank_id = :bank AND id = :id"
        ),
        {"tenant": asker.tenant, "bank": bank, "id": document, "access": list(access)},
    ).rowcount:
        raise NotFoundError(f"document {document!r} does not exist in this bank")


def forget(connection: Connection, asker: Asker, document: str, bank: int | None = None) -> Deleted:
    """Delete a document and all that was made of it; `uncached` is to follow.

    An asker without a principal is an operator. Raises NotFoundError, also for what the principal
    may not read, and ForbiddenError where it is no writer of a bank that has it.
    """
    tenant, known = asker.tenant or 0, asker.principal is not None
    whose = {"tenant": tenant, "id": document, "bank": bank}
    banks = [
        row.bank_id
        for row in connection.execute(_LOCK, whose).all()
        if not known or on_list(connection, row.access)
    ]
    for each in banks if known else ():
        require(connection, each, BankRole.WRITER)
    if not banks:
        raise NotFoundError(f"document {document!r} does not exist in this tenant")
    return delete(connection, tenant, [(each, document) for each in banks])


def delete(connection: Connection, tenant: int, keys: Sequence[tuple[int, str]]) -> Deleted:
    """Delete documents, by bank and id, that the transaction holds locks of. `uncached`
    is to follow when it is over."""
    whose = {"tenant": tenant, "banks": [bank for bank, _ in keys], "ids": [id for _, id in keys]}
    chunks, *counts = connection.execute(_MADE_OF, whose).one()
    connection.execute(_DELETE, whose)
    return Receipt(len(keys), len(chunks), *counts), list(chunks)


def uncached(tenant: int, receipt: Receipt, chunks: Sequence[int]) -> Receipt:
    """Remove what the cache folder has of deleted chunks; the receipt with that.

    After the transaction that deleted them: before its end a reader could put them there again.
    """
    folder = disk()
    return replace(receipt, cache_entries=folder.forget(tenant, chunks) if folder else 0)


_LOCK = text(
    "SELECT bank_id, access FROM document WHERE tenant_id = :tenant AND id = :id"
    " AND bank_id = coalesce(cast(:bank AS bigint), bank_id) FOR UPDATE"
)
_THESE = "SELECT * FROM unnest(cast(:banks AS bigint[]), cast(:ids AS text[]))"
_MADE_OF = text(
    f"""
    SELECT ARRAY(SELECT c.id FROM chunk c WHERE c.tenant_id = :tenant
                AND (c.bank_id, c.document_id) IN ({_THESE})),
           (SELECT count(*) FROM memory_key k WHERE k.tenant_id = :tenant
                AND (k.bank_id, k.document_id) IN ({_THESE})),
           (SELECT count(*) FROM memory_blob b JOIN memory_key k
                USING (tenant_id, chunk_id, profile_id) WHERE k.tenant_id = :tenant
                AND (k.bank_id, k.document_id) IN ({_THESE})),
           (SELECT count(*) FROM outbox o WHERE o.tenant_id = :tenant
                AND (o.bank_id, o.document_id) IN ({_THESE}))
    """  # noqa: S608 (words of ours)
)
_DELETE = text(
    f"DELETE FROM document WHERE tenant_id = :tenant AND (bank_id, id) IN ({_THESE})"  # noqa: S608 (words of ours)
)


def _require_writer(connection: Connection, values: dict[str, Any]) -> None:
    """What a principal needs to write a document as `values` have it (see store)."""
    role = require(connection, values["bank"], BankRole.WRITER)
    known: list[str] | None = connection.execute(
        text(
            "SELECT access FROM document WHERE tenant_id = :tenant AND bank_id = :bank"
            " AND id = :id FOR UPDATE"
        ),
        values,
    ).scalar()
    if known is None or role is BankRole.ADMIN:
        return
    if not on_list(connection, known):
        raise ForbiddenError(f"document {values['id']!r} is not yours to change: take another id")
    if values["access"] is not None and set(values["access"]) != set(known):
        raise ForbiddenError(
            f"the list of document {values['id']!r} is for admins of the bank to change:"
            " leave it as it is"
        )


def _replace_chunks(
    connection: Connection, tenant: int, bank: int, document: str, pieces: Sequence[Piece]
) -> bool:
    """Keep chunks whose text is the same, drop the others, add what is new."""
    whose = {"tenant": tenant, "bank": bank, "id": document}
    rows = connection.execute(
        text(
            "SELECT id, hash FROM chunk WHERE tenant_id = :tenant AND bank_id = :bank"
            " AND document_id = :id ORDER BY ordinal FOR UPDATE"
        ),
        whose,
    ).all()
    free: dict[str, list[int]] = {}
    for row in reversed(rows):
        free.setdefault(row.hash, []).append(row.id)
    kept, added = [], []
    for ordinal, piece in enumerate(pieces):
        place = {"tenant": tenant, "ordinal": ordinal, "start": piece.start, "end": piece.end}
        same = free.get(piece.hash)
        if same:
            kept.append(place | {"chunk": same.pop(), "heading": piece.heading})
        else:
            added.append(
                place
                | whose
                | {
                    "text": piece.text,
                    "heading": piece.heading,
                    "hash": piece.hash,
                }
            )
    gone = [chunk for chunks in free.values() for chunk in chunks]
    if gone:
        connection.execute(
            text("DELETE FROM chunk WHERE tenant_id = :tenant AND id = ANY(:gone)"),
            {"tenant": tenant, "gone": gone},
        )
    if kept:
        connection.execute(
            text(
                "UPDATE chunk SET ordinal = :ordinal, start_at = :start, end_at = :end,"
                " heading = :heading WHERE tenant_id = :tenant AND id = :chunk"
            ),
            kept,
        )
    if added:
        _insert_chunks(connection, whose, added)
    return bool(gone or added)


def _insert_chunks(
    connection: Connection, whose: dict[str, Any], added: Sequence[dict[str, Any]]
) -> None:
    """One statement for all, so that the trigger that queues them runs once."""
    columns = ("ordinal", "text", "heading", "start", "end", "hash")
    connection.execute(
        text(
            "INSERT INTO chunk (tenant_id, bank_id, document_id, ordinal, text, heading, start_at,"
            " end_at, hash) SELECT :tenant, :bank, :id, * FROM unnest("
            "cast(:ordinal AS int[]), cast(:text AS text[]), cast(:heading AS text[]),"
            " cast(:start AS int[]), cast(:end AS int[]), cast(:hash AS text[]))"
        ),
        whose | {column: [row[column] for row in added] for column in columns},
    )
