"""The audit log: what was done is added by those who do it, and read by administrators alone.

Changes of documents and rights are noted by triggers, whoever makes them and by whatever way.
Times and names are the database's to say. No text of a question, an answer or a document is noted.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

_NOTE = text(
    "INSERT INTO audit_event (tenant_id, action, bank_id, document_ids, chunk_ids, detail)"
    " VALUES (:tenant, :action, :bank, :documents, :chunks, :detail)"
).bindparams(bindparam("detail", type_=JSONB))


def note(
    connection: Connection,
    tenant: int | None,
    action: str,
    bank: int | None = None,
    documents: Sequence[str] = (),
    chunks: Sequence[int] = (),
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an event, in the name of whom the transaction is for."""
    connection.execute(
        _NOTE,
        {
            "tenant": tenant,
            "action": action,
            "bank": bank,
            "documents": list(dict.fromkeys(documents)),
            "chunks": list(chunks),
            "detail": dict(detail or {}),
        },
    )


_EVENTS = text(
    "SELECT e.id, e.at, e.actor, e.principal_id, e.action, b.name AS bank, e.bank_id,"
    " e.document_ids, e.chunk_ids, e.detail FROM audit_event e"
    " LEFT JOIN bank b ON b.tenant_id = e.tenant_id AND b.id = e.bank_id"
    " WHERE e.tenant_id = :tenant AND e.at >= coalesce(cast(:since AS timestamptz), '-infinity')"
    " AND e.id > :after ORDER BY e.id LIMIT cast(:limit AS bigint)"
)


def events(
    connection: Connection, tenant: int, since: datetime | None = None
) -> Iterator[dict[str, Any]]:
    """A tenant's events for an administrator, the oldest first, as they are read from the
    database."""
    streamed = connection.execution_options(stream_results=True, max_row_buffer=1000)
    for row in streamed.execute(
        _EVENTS, {"tenant": tenant, "since": since, "after": 0, "limit": None}
    ).mappings():
        yield dict(row)


def page(
    connection: Connection,
    tenant: int,
    limit: int,
    after: int = 0,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """At most `limit` of a tenant's events whose id is greater than `after`, for an administrator;
    the oldest first."""
    values = {"tenant": tenant, "since": since, "after": after, "limit": limit}
    return [dict(row) for row in connection.execute(_EVENTS, values).mappings()]


def erased(connection: Connection, name: str) -> list[int]:
    """Ids of tenants of that name that were erased, for an administrator."""
    return list(
        connection.execute(
            text(
                "SELECT tenant_id FROM audit_event WHERE action = 'erase'"
                " AND detail ->> 'tenant' = :name ORDER BY at"
            ),
            {"name": name},
        ).scalars()
    )


def expire(connection: Connection, tenant: int, days: int) -> int:
    """Delete some of a tenant's events older than so many days, 30 or more; how many. 0: that was
    all."""
    return int(
        connection.execute(
            text("SELECT audit_expire(:tenant, :days)"), {"tenant": tenant, "days": days}
        ).scalar_one()
    )
