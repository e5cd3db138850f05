"""Access lists: who may read a document."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from app.errors import NotFoundError, UsageError


def checked_access(connection: Connection, tenant: int, entries: Sequence[str]) -> list[str]:
    """An access list whose principals and groups all exist, each entry once, in order.

    Raises UsageError for an entry of another form, NotFoundError for a name that is not there.
    """
    for entry in entries:
        kind, _, name = entry.partition(":")
        if entry != "everyone" and (kind not in ("principal", "group") or not name):
            raise UsageError(
                f"{entry!r} is not an access entry: principal:NAME, group:NAME or everyone"
            )
    known = set(connection.execute(_KNOWN, {"tenant": tenant, "entries": list(entries)}).scalars())
    missing = [entry for entry in entries if entry != "everyone" and entry not in known]
    if missing:
        raise NotFoundError(
            f"{missing[0].replace(':', ' ', 1)} does not exist in this tenant:"
            " membank principal add NAME --tenant T [--group G]"
        )
    return sorted(set(entries))


_KNOWN = text(
    "SELECT 'principal:' || name FROM principal"
    " WHERE tenant_id = :tenant AND 'principal:' || name = ANY(:entries)"
    " UNION ALL SELECT 'group:' || name FROM principal_group"
    " WHERE tenant_id = :tenant AND 'group:' || name = ANY(:entries)"
)
