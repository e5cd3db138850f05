"""Moves memories from Postgres to the object store, or back.

The rows show what has been done, so a move can be interrupted at any point and started again.
Questions, workers and other movers go on meanwhile: no transaction is open while the store works,
and a row that somebody has changed stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from app.db.session import Asker, driver_of, transaction
from app.db.tenants import next_tenant
from app.errors import UsageError
from app.store import objects
from app.store.objects import Objects
from app.store.rewrite import Rewritten, rewrite

Target = Literal["postgres", "object"]
_PAGE = 50
"""Memories at a time, about 4 MB."""
_FROM = {"postgres": "location IS NOT NULL", "object": "payload IS NOT NULL"}
_ROWS = {
    to: "SELECT chunk_id, profile_id, payload, location, sha256 FROM memory_blob"  # noqa: S608
    f" WHERE tenant_id = %s AND (chunk_id, profile_id) > (%s, %s) AND {which}"
    " ORDER BY chunk_id, profile_id LIMIT %s"
    for to, which in _FROM.items()
}


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
            page, after = _page(tenant, to, store, after)
            yield page
        tenant = next_tenant(tenant)


def _page(
    tenant: int, to: Target, store: Objects | None, after: tuple[int, str]
) -> tuple[Moved, tuple[int, str] | None]:
    asker = Asker("worker", tenant)
    with transaction(asker) as connection, driver_of(connection).cursor(binary=True) as cursor:
        rows = cursor.execute(_ROWS[to], (tenant, *after, _PAGE)).fetchall()
    away = [location for *_, location, _ in rows if location is not None]
    found = objects.reading().get(away) if away else {}
    there, missing = [], []
    for chunk, profile, payload, location, sha256 in rows:
        stored = payload if location is None else found.get(location)
        if stored is None:
            missing.append((chunk, profile, location))
        else:
            there.append(Rewritten(chunk, profile, stored, sha256, location))
    moved = Moved(rewrite(tenant, there, store), _still(asker, missing))
    return moved, (rows[-1][0], rows[-1][1]) if len(rows) == _PAGE else None


def _still(asker: Asker, missing: Sequence[tuple[int, str, str]]) -> int:
    """How many rows name an object that is missing, and have not been written anew meanwhile."""
    if not missing:
        return 0
    with transaction(asker) as connection:
        return sum(
            connection.execute(
                _NAMES,
                {"tenant": asker.tenant, "chunk": chunk, "profile": profile, "location": location},
            ).scalar_one()
            for chunk, profile, location in missing
        )


_NAMES = text(
    "SELECT count(*) FROM memory_blob WHERE tenant_id = :tenant AND chunk_id = :chunk"
    " AND profile_id = :profile AND location = :location"
)
