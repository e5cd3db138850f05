"""Removes objects that no memory needs any more: those that rows released, and strays.

object_gone records the objects that rows have released. A stray is an object that never got a row.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby

from sqlalchemy import text

from app.db.session import Asker, transaction
from app.store.objects import reading
from app.store.unneeded import remove

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


def collect_of(tenant: int, stop: threading.Event | None = None) -> int:
    """Remove the objects that one tenant's rows have released, even if the tenant is gone.

    Returns how many. Raises UnavailableError, UsageError.
    """
    count, after, rows = 0, 0, _PAGE
    while rows == _PAGE and not (stop and stop.is_set()):
        with transaction(Asker("worker", tenant)) as connection:
            values = {"tenant": tenant, "after": after, "page": _PAGE}
            found = connection.execute(_WAITING, values).all()
        rows, after = len(found), found[-1].id if found else after
        needed = remove(tenant, {row.location for row in found}, [row.id for row in found])
        count += sum(not still for still in needed.values())
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
                removed += sum(not still for still in remove(tenant, set(names)).values())
        yield removed


def _tenant_of(name: str) -> int | None:
    tenant, *rest = name.split("/")
    return int(tenant) if tenant.isdecimal() and len(tenant) < 19 and len(rest) == 2 else None
