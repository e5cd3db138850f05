"""Moves memories from Postgres to the object store, or back.

Each page is a separate transaction, and the rows show what has been done, so a move can be
interrupted at any point and started again. Questions, workers and other movers go on meanwhile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, text

from app.db.session import Asker, driver_of, transaction
from app.db.tenants import next_tenant
from app.errors import UsageError
from app.store import objects
from app.store.objects import Objects

Target = Literal["postgres", "object"]
_PAGE = 50
"""Memories per transaction, about 4 MB."""
_FROM = {"postgres": "location IS NOT NULL", "object": "payload IS NOT NULL"}


@dataclass(frozen=True)
class Moved:
    """Counts of one page: memories that were moved, and objects that were missing."""

    blobs: int
    missing: int


def waiting(to: Target) -> int:
    """Count the memories that have not been moved yet."""
    query = text(f"SELECT count(*) FROM memory_blob WHERE {_FROM[to]} AND tenant_id = :tenant")  # noqa: S608 (words of ours)
    count, tenant = 0, next_tenant(0)
    while tenant is not None:
        with transaction(Asker("worker", tenant)) as connection:
            count += connection.execute(query, {"tenant": tenant}).scalar_one()
        tenant = next_tenant(tenant)
    return count


def move(to: Target) -> Iterator[Moved]:
    """Move all memories of all tenants, page by page.

    Raises UsageError when no store is set, or when the settings still send new memories to the
    place being emptied; UnavailableError; and BlobError for a damaged object.
    """
    store = objects.writing()
    if to == "object" and store is None:
        raise UsageError("no object store is set: set MEMBANK_BLOB_STORE")
    if to == "postgres" and store is not None:
        raise UsageError(
            "new memories still go to the object store: set MEMBANK_OLD_BLOB_STORE instead of"
            " MEMBANK_BLOB_STORE, also for workers and readers, then move"
        )
    tenant = next_tenant(0)
    while tenant is not None:
        after: tuple[int, str] | None = (0, "")
        while after is not None:
            with transaction(Asker("worker", tenant)) as connection:
                page, after = _page(connection, tenant, to, store, after)
            yield page
        tenant = next_tenant(tenant)


def _page(
    connection: Connection, tenant: int, to: Target, store: Objects | None, after: tuple[int, str]
) -> tuple[Moved, tuple[int, str] | None]:
    with driver_of(connection).cursor(binary=True) as cursor:
        rows = cursor.execute(
            "SELECT chunk_id, profile_id, payload, location FROM memory_blob"  # noqa: S608
            f" WHERE tenant_id = %s AND (chunk_id, profile_id) > (%s, %s) AND {_FROM[to]}"
            " ORDER BY chunk_id, profile_id LIMIT %s FOR UPDATE SKIP LOCKED",
            (tenant, *after, _PAGE),
        ).fetchall()
        found = objects.reading().get([r[3] for r in rows]) if rows and store is None else {}
        there = [
            (chunk, profile, stored)
            for chunk, profile, payload, location in rows
            if (stored := payload if location is None else found.get(location)) is not None
        ]
        blobs = [(profile, stored) for _, profile, stored in there]
        placed = objects.place(connection, tenant, blobs, store)
        changed = [
            (new.payload, new.location, new.size, tenant, chunk, profile)
            for new, (chunk, profile, _) in zip(placed, there, strict=True)
        ]
        cursor.executemany(
            "UPDATE memory_blob SET payload = %s, location = %s, size = %s"
            " WHERE tenant_id = %s AND chunk_id = %s AND profile_id = %s",
            changed,
        )
    last = (rows[-1][0], rows[-1][1]) if len(rows) == _PAGE else None
    return Moved(len(changed), len(rows) - len(changed)), last
