"""Tenants, principals, groups and banks: made by an administrator, looked up by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, IntegrityError

from app.bank import profiles
from app.bank.session import Asker, transaction
from app.errors import ConflictError, ModelNotFoundError, NotFoundError, UsageError


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


def add_tenant(name: str) -> int:
    """Make a tenant; its id. Raises ConflictError when the name is taken."""
    with transaction(Asker("admin")) as connection:
        return _insert(
            connection,
            f"tenant {name!r}",
            "INSERT INTO tenant (name) VALUES (:name) RETURNING id",
            name=named(name, "tenant"),
        )


def pause_tenant(name: str, paused: bool) -> None:
    """Let workers leave a tenant's work alone, or take it again. Raises NotFoundError."""
    owner = tenant_id(name)
    with transaction(Asker("admin", owner)) as connection:
        connection.execute(
            text("UPDATE tenant SET paused = :paused WHERE id = :id"),
            {"paused": paused, "id": owner},
        )


def paused_name(tenant: int) -> str | None:
    """The tenant's name if it is paused."""
    with transaction(Asker("app", tenant)) as connection:
        return connection.execute(
            text("SELECT name FROM tenant WHERE id = :id AND paused"), {"id": tenant}
        ).scalar()


def add_principal(tenant: str, name: str, groups: Sequence[str] = ()) -> int:
    """Make a principal and the groups it names; its id. An existing principal joins the groups."""
    owner = tenant_id(tenant)
    with transaction(Asker("admin", owner)) as connection:
        principal = connection.execute(
            text(
                "INSERT INTO principal (tenant_id, name) VALUES (:tenant, :name)"
                " ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name RETURNING id"
            ),
            {"tenant": owner, "name": named(name, "principal")},
        ).scalar_one()
        for group in groups:
            _join(connection, owner, group, principal)
        return int(principal)


def join_group(tenant: str, group: str, principal: str) -> None:
    """Let a principal be in a group, which is made if it is new. Raises NotFoundError."""
    member = find_principal(tenant, principal)
    with transaction(Asker("admin", member.tenant)) as connection:
        _join(connection, member.tenant, group, member.principal)


def leave_group(tenant: str, group: str, principal: str) -> None:
    """Take a principal out of a group, from the next question on. Raises NotFoundError."""
    member = find_principal(tenant, principal)
    with transaction(Asker("admin", member.tenant)) as connection:
        left = connection.execute(
            text(
                "DELETE FROM group_member m USING principal_group g"
                " WHERE m.tenant_id = :tenant AND m.principal_id = :principal"
                " AND g.tenant_id = m.tenant_id AND g.id = m.group_id AND g.name = :name"
            ),
            {"tenant": member.tenant, "principal": member.principal, "name": _storable(group)},
        ).rowcount
    if not left:
        raise NotFoundError(f"principal {principal!r} is not in group {group!r}: nothing to remove")


def add_bank(tenant: str, name: str, profile: str, spec: str, closed: bool = False) -> Bank:
    """Make a bank under an encoder profile, whose reader everyone of the tenant is, or nobody yet.

    Raises ConflictError when the name is taken.
    """
    owner = tenant_id(tenant)
    with transaction(Asker("admin", owner)) as connection:
        profiles.keep(connection, owner, profile, spec)
        bank = _insert(
            connection,
            f"bank {name!r} of tenant {tenant!r}",
            "INSERT INTO bank (tenant_id, name, profile_id) VALUES (:tenant, :name, :profile)"
            " RETURNING id",
            tenant=owner,
            name=named(name, "bank"),
            profile=profile,
        )
        if not closed:
            connection.execute(
                text(
                    "INSERT INTO bank_member (tenant_id, bank_id, grantee, role)"
                    " VALUES (:tenant, :bank, 'everyone', 'reader')"
                ),
                {"tenant": owner, "bank": bank},
            )
    return Bank(owner, bank, name, profile, json.loads(spec))


def tenant_id(name: str) -> int:
    """Raises NotFoundError that says how to make the tenant."""
    with transaction(Asker("app")) as connection:
        found = connection.execute(
            text("SELECT find_tenant(:name)"), {"name": _storable(name)}
        ).scalar()
    if found is None:
        raise NotFoundError(f"tenant {name!r} does not exist: membank tenant add {name!r}")
    return int(found)


def find_bank(tenant: str, name: str) -> Bank:
    """Raises NotFoundError that says how to make the tenant or the bank."""
    owner = Asker("app", tenant_id(tenant))
    with transaction(owner) as connection:
        found = _banks(connection, owner, "b.name = :which", _storable(name))
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
    found = _banks(connection, asker, f"{_READABLE} AND b.name = :which", _storable(bank))
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


def find_principal(tenant: str, name: str) -> Asker:
    """The reader that a principal's questions are asked as."""
    owner = tenant_id(tenant)
    with transaction(Asker("app", owner)) as connection:
        found = connection.execute(
            text("SELECT id FROM principal WHERE tenant_id = :tenant AND name = :name"),
            {"tenant": owner, "name": _storable(name)},
        ).scalar()
    if found is None:
        raise NotFoundError(
            f"principal {name!r} of tenant {tenant!r} does not exist:"
            f" membank principal add {name!r} --tenant {tenant!r}"
        )
    return Asker("app", owner, found)


def checked_access(bank: Bank, entries: Sequence[str]) -> list[str]:
    """An access list whose principals and groups all exist.

    Raises UsageError for an entry of another form, NotFoundError for a name that is not there.
    """
    for entry in entries:
        kind, _, name = entry.partition(":")
        if entry != "everyone" and (kind not in ("principal", "group") or not name):
            raise UsageError(
                f"{entry!r} is not an access entry: principal:NAME, group:NAME or everyone"
            )
    with transaction(Asker("app", bank.tenant)) as connection:
        known = set(
            connection.execute(
                text(
                    "SELECT 'principal:' || name FROM principal WHERE tenant_id = :tenant"
                    " UNION ALL SELECT 'group:' || name FROM principal_group"
                    " WHERE tenant_id = :tenant"
                ),
                {"tenant": bank.tenant},
            ).scalars()
        ) | {"everyone"}
    missing = [entry for entry in entries if entry not in known]
    if missing:
        raise NotFoundError(
            f"{missing[0].replace(':', ' ', 1)} does not exist in this tenant:"
            " membank principal add NAME --tenant T [--group G]"
        )
    return sorted(set(entries))


def _join(connection: Connection, tenant: int | None, group: str, principal: int | None) -> None:
    connection.execute(
        text(
            "WITH g AS (INSERT INTO principal_group (tenant_id, name) VALUES (:tenant, :name)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name RETURNING id)"
            " INSERT INTO group_member (tenant_id, group_id, principal_id)"
            " SELECT :tenant, id, :principal FROM g ON CONFLICT DO NOTHING"
        ),
        {"tenant": tenant, "name": named(group, "group"), "principal": principal},
    )


def _insert(connection: Connection, what: str, statement: str, **values: object) -> int:
    try:
        return int(connection.execute(text(statement), values).scalar_one())
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) == "23505":
            raise ConflictError(f"{what} exists already: choose another name") from None
        raise
    except DataError as error:
        raise UsageError(f"{what}: {str(error.orig).strip()}") from None


def named(name: str, what: str) -> str:
    """A name as it is kept. Raises UsageError for one that cannot name a `what`."""
    clean = name.strip()
    if not 1 <= len(clean) <= 200 or not clean.isprintable():
        raise UsageError(f"{name!r} cannot name a {what}: 1 to 200 printable characters")
    return clean


def _storable(name: str) -> str:
    return name.replace("\x00", "\ufffd")  # Postgres text holds no NUL; such a name matches none
