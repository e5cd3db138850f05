"""Removes objects that no memory needs any more: those that rows released, and strays.

object_gone records the objects that rows have released. A stray is an object that never got a row.
"""

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from sqlalchemy import Connection, text

from app.db.session import Asker, transaction
from app.store.objects import reading

_PAGE = 100
YOUNG = timedelta(hours=1)
"""The row for an object may be written this much later than the object."""


def collect(stop: threading.Event | None = None) -> int:
    """Remove the objects that rows have released; return how many.

    Raises UnavailableError, and UsageError when no store is set.
    """
    with transaction(Asker("worker")) as connection:
        tenants = list(connection.execute(text("SELECT gone_tenants()")).scalars())
    return sum(collect_of(tenant, stop) for tenant in tenants)


_WAITING = text(
    "SELECT id, location FROM object_gone WHERE tenant_id = :tenant AND id > :after"
    " ORDER BY id LIMIT :page"
)
_DONE = text("DELETE FROM object_gone WHERE tenant_id = :tenant AND id = ANY(:ids)")


def collect_of(tenant: int, stop: threading.Event | None = None) -> int:
    """Remove the objects that one tenant's rows have released, even if the tenant is gone."""
    count, after, rows = 0, 0, _PAGE
    while rows == _PAGE and not (stop and stop.is_set()):
        with transaction(Asker("worker", tenant)) as connection:
            values = {"tenant": tenant, "after": after, "page": _PAGE}
            found = connection.execute(_WAITING, values).all()
            rows, after = len(found), found[-1].id if found else after
            needed = _needed(connection, tenant, {row.location for row in found})
            count += _remove(needed)
            # If a row still needs an object, it is recorded again when that row releases it.
            ids = [row.id for row in found if row.location in needed]
            connection.execute(_DONE, {"tenant": tenant, "ids": ids})
    return count


def sweep(now: datetime | None = None) -> Iterator[int]:
    """Remove objects older than YOUNG that no row names; yield how many in each page of the store.

    Objects whose names do not follow our scheme are left alone. Raises UnavailableError, and
    UsageError when no store is set.
    """
    before = (now or datetime.now(UTC)) - YOUNG
    for page in reading().listed():
        old = sorted(name for name, written in page if written < before and name[:1].isdigit())
        removed = 0
        for tenant, names in groupby(old, key=_tenant_of):
            if tenant is not None:
                with transaction(Asker("worker", tenant)) as connection:
                    removed += _remove(_needed(connection, tenant, set(names)))
        yield removed


def _tenant_of(name: str) -> int | None:
    tenant, *rest = name.split("/")
    return int(tenant) if tenant.isdecimal() and len(tenant) < 19 and len(rest) == 2 else None


_TRY = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
_NAMED = text(
    "SELECT EXISTS (SELECT FROM memory_blob WHERE tenant_id = :tenant AND location = :name)"
)


def _needed(connection: Connection, tenant: int, names: set[str]) -> dict[str, bool]:
    """Map each name to whether a row names it; the names stay locked until the transaction ends.

    Names that another process is writing or removing are left out.
    """
    found = {}
    for name in sorted(names):
        values = {"tenant": tenant, "name": name}
        if not name.startswith(f"{tenant}/"):
            found[name] = True
        elif connection.execute(_TRY, values).scalar():
            found[name] = bool(connection.execute(_NAMED, values).scalar())
    return found


def _remove(needed: dict[str, bool]) -> int:
    going: Sequence[str] = [name for name, still in needed.items() if not still]
    if going:
        reading().remove(going)
    return len(going)
