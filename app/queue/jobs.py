"""The queue's work as an administrator sees it: listed, tried again, cancelled, discarded.

The database has it all as a view and functions, for those who use SQL; this only calls them, in a
transaction of an administrator.
"""

from enum import StrEnum

from sqlalchemy import Connection, text


class State(StrEnum):
    """Waits; is held by a worker; was given up."""

    PENDING = "pending"
    ENCODING = "encoding"
    FAILED = "failed"


_LIST = text(
    "SELECT *, count(*) OVER () AS total FROM job"
    " WHERE tenant_id = coalesce(cast(:tenant AS bigint), tenant_id)"
    " AND bank = coalesce(cast(:bank AS text), bank)"
    " AND coalesce(document_id, file_id) = coalesce(cast(:document AS text), document_id, file_id)"
    " AND state = coalesce(cast(:state AS text), state)"
    " ORDER BY tenant, state <> 'failed', state <> 'encoding', priority DESC,"
    " chunk_id NULLS FIRST, document_id LIMIT :limit"
)


def find(
    connection: Connection,
    limit: int,
    tenant: int | None = None,
    bank: str | None = None,
    document: str | None = None,
    state: State | None = None,
) -> tuple[list[dict[str, object]], int]:
    """The first `limit` rows of the view job, and how many there are.

    What failed first, then what is held, then what waits in the order in which it is claimed.
    """
    values = {
        "limit": limit,
        "tenant": tenant,
        "bank": bank,
        "document": document,
        "state": state and state.value,
    }
    rows = [dict(row) for row in connection.execute(_LIST, values).mappings()]
    totals = [row.pop("total") for row in rows]
    return rows, int(totals[0]) if totals else 0


def retry(
    connection: Connection, tenant: int, bank: int | None = None, document: str | None = None
) -> int:
    """Put what has failed back in the outbox, as if it had never been tried; how many."""
    return _call(connection, "job_retry", tenant, bank, document)


def cancel(
    connection: Connection, tenant: int, bank: int | None = None, document: str | None = None
) -> int:
    """Move what waits to what has failed, so that it can be tried again one day; how many."""
    return _call(connection, "job_cancel", tenant, bank, document)


def discard(
    connection: Connection, tenant: int, bank: int | None = None, document: str | None = None
) -> int:
    """Take what has failed off the list for good; how many."""
    return _call(connection, "job_discard", tenant, bank, document)


def _call(
    connection: Connection, function: str, tenant: int, bank: int | None, document: str | None
) -> int:
    return int(
        connection.execute(
            text(f"SELECT {function}(:tenant, cast(:bank AS bigint), cast(:document AS text))"),
            {"tenant": tenant, "bank": bank, "document": document},
        ).scalar_one()
    )
