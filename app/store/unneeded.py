"""Objects that no row names are removed, and nothing else is."""

from collections.abc import Collection

from sqlalchemy import Connection, text

from app.db.session import Asker, keeping
from app.store.objects import reading


def remove(tenant: int, names: Collection[str], done: Collection[int] = ()) -> dict[str, bool]:
    """Remove those objects of a tenant that no row names: whether one does, by name, of those that
    nobody writes or removes right now.

    done: rows of object_gone to delete afterwards, as far as their object was looked at. No
    transaction is open while the store is asked. Raises UnavailableError, UsageError.
    """
    asker = Asker("worker", tenant)
    own = {name for name in names if name.startswith(f"{tenant}/")}
    needed = dict.fromkeys(set(names) - own, True)
    with keeping(asker, own, alone=True) as (mine, begin):
        with begin() as connection:
            needed |= {name: _named(connection, tenant, name) for name in sorted(mine)}
        going = [name for name, still in needed.items() if not still]
        if going:
            reading().remove(going)
        if done:
            with begin() as connection:
                values = {"tenant": tenant, "ids": list(done), "names": list(needed)}
                connection.execute(_DONE, values)
    return needed


_NAMED = text(
    "SELECT EXISTS (SELECT FROM memory_blob WHERE tenant_id = :tenant AND location = :name)"
)
# Where a row needs it, that one lets go of it some day, and it is written down again.
_DONE = text(
    "DELETE FROM object_gone"
    " WHERE tenant_id = :tenant AND id = ANY(:ids) AND location = ANY(:names)"
)


def _named(connection: Connection, tenant: int, name: str) -> bool:
    return bool(connection.execute(_NAMED, {"tenant": tenant, "name": name}).scalar())
