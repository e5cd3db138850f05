"""Banks, found by name or id."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.access.tenants import tenant_id
from app.db.names import storable
from app.db.session import Asker, transaction
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


def find_bank(tenant: str, name: str) -> Bank:
    """Raises NotFoundError that says how to make the tenant or the bank."""
    owner = Asker("app", tenant_id(tenant))
    with transaction(owner) as connection:
        found = _banks(connection, owner, "b.name = :which", storable(name))
    if not found:
        raise NotFoundError(
            f"bank {name!r} of tenant {tenant!r} does not exist:"
            f" membank bank add {name!r} --tenant {tenant!r}"
        )
    return found[0]


def bank_now(tenant: int, bank: int) -> Bank:
    """A bank by its id, as it is now. Raises NotFoundError when it was deleted."""
    owner = Asker("app", tenant)
    with transaction(owner) as connection:
        return asked_bank(connection, owner, bank)


_READABLE = "b.id = ANY ((SELECT current_banks())::bigint[])"


def readable_banks(reader: Asker) -> list[Bank]:
    """The banks that let a principal read, by name."""
    with transaction(reader) as connection:
        return _banks(connection, reader, _READABLE)


def readable_bank(reader: Asker, name: str) -> Bank:
    """One of them. Raises ModelNotFoundError also for a bank that is there for others."""
    with transaction(reader) as connection:
        return asked_bank(connection, reader, name)


def asked_bank(connection: Connection, asker: Asker, bank: int | str) -> Bank:
    """The bank of this id, or the readable one of this name, in a transaction of the asker's.

    Raises NotFoundError for an id, ModelNotFoundError for a name.
    """
    if isinstance(bank, int):
        found = _banks(connection, asker, "b.id = :which", bank)
        if not found:
            raise NotFoundError(
                f"bank {bank} of tenant {asker.tenant} was deleted: ask another one"
            )
        return found[0]
    found = _banks(connection, asker, f"{_READABLE} AND b.name = :which", storable(bank))
    if not found:
        raise ModelNotFoundError(f"there is no bank {bank!r} that you may read: GET /v1/models")
    return found[0]


def _banks(
    connection: Connection, asker: Asker, which: str, value: str | int | None = None
) -> list[Bank]:
    rows = connection.execute(
        text(
            "SELECT b.tenant_id, b.id, b.name, b.profile_id, p.spec, b.next_profile_id,"  # noqa: S608 (words of ours)
            " b.switched_at, b.created_at FROM bank b JOIN encoder_profile p"
            " ON p.tenant_id = b.tenant_id AND p.id = b.profile_id"
            f" WHERE b.tenant_id = :tenant AND {which} ORDER BY b.name"
        ),
        {"tenant": asker.tenant} | ({} if value is None else {"which": value}),
    )
    return [Bank(*row) for row in rows]
