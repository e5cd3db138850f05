"""Banks, found by name or id."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.access.tenants import tenant_name
from app.db.names import storable
from app.db.session import Asker
from app.errors import ModelNotFoundError, NotFoundError


@dataclass(frozen=True)
class Bank:
    """A tenant's bank, the profile that it is encoded under, and what that profile says.

    next_profile: the one that it is being encoded under, to be switched to; switched_at: when it
    last was.
    """

    tenant: int
    id: int
    name: str
    profile: str
    spec: Mapping[str, Any]
    next_profile: str | None = None
    switched_at: datetime | None = None
    created: datetime | None = None


def find_bank(connection: Connection, tenant: int, name: str) -> Bank:
    """A bank by its name, as an operator sees it. Raises NotFoundError that says how to make it."""
    found = _banks(connection, tenant, "b.name = :which", storable(name))
    if not found:
        of = tenant_name(connection, tenant)
        raise NotFoundError(
            f"bank {name!r} of tenant {of!r} does not exist:"
            f" membank bank add {name!r} --tenant {of!r}"
        )
    return found[0]


_READABLE = "b.id = ANY ((SELECT current_banks())::bigint[])"


def readable_banks(connection: Connection, reader: Asker) -> list[Bank]:
    """The banks that let a principal read, by name."""
    return _banks(connection, reader.tenant, _READABLE)


def asked_bank(connection: Connection, asker: Asker, bank: int | str) -> Bank:
    """The bank of this id, or the one of this name that the asker may read; as it is now.

    Raises NotFoundError for an id, ModelNotFoundError for a name.
    """
    if isinstance(bank, int):
        found = _banks(connection, asker.tenant, "b.id = :which", bank)
        if not found:
            raise NotFoundError(
                f"bank {bank} of tenant {asker.tenant} was deleted: ask another one"
            )
        return found[0]
    found = _banks(connection, asker.tenant, f"{_READABLE} AND b.name = :which", storable(bank))
    if not found:
        raise ModelNotFoundError(f"there is no bank {bank!r} that you may read: GET /v1/models")
    return found[0]


def _banks(
    connection: Connection, tenant: int | None, which: str, value: str | int | None = None
) -> list[Bank]:
    rows = connection.execute(
        text(
            "SELECT b.tenant_id, b.id, b.name, b.profile_id, p.spec, b.next_profile_id,"  # noqa: S608 (words of ours)
            " b.switched_at, b.created_at FROM bank b JOIN encoder_profile p"
            " ON p.tenant_id = b.tenant_id AND p.id = b.profile_id"
            f" WHERE b.tenant_id = :tenant AND {which} ORDER BY b.name"
        ),
        {"tenant": tenant} | ({} if value is None else {"which": value}),
    )
    return [Bank(*row) for row in rows]
