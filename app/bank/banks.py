"""Banks as those see, make and change them who have a role there."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from app.bank import documents, members, profiles
from app.bank.documents import Deleted
from app.bank.find import Bank
from app.bank.roles import BankRole, require
from app.db.names import insert, named
from app.db.paging import Rows, Window, page
from app.db.session import Asker
from app.errors import ConflictError, NotFoundError


@dataclass(frozen=True)
class Known:
    """A bank of which the asker may read something."""

    id: int
    name: str
    created_at: datetime
    metadata: dict[str, Any]


_KNOWN = (
    "SELECT id::text AS id, name, created_at, metadata FROM bank"
    " WHERE tenant_id = :tenant AND id = ANY ((SELECT current_banks())::bigint[])"
)


def find(connection: Connection, asker: Asker, id: int) -> Known:
    """Raises NotFoundError, also where the asker has no role in the bank."""
    row = connection.execute(
        text(f"{_KNOWN} AND id = :id"), {"tenant": asker.tenant, "id": id}
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no bank of the number {id}, or it is closed to you")
    return Known(int(row.id), row.name, row.created_at, row.metadata)


def listing(connection: Connection, asker: Asker, window: Window) -> Rows:
    """A page of the banks in which the asker has a role, with the fields of Known; id is text."""
    return page(connection, _KNOWN, {"tenant": asker.tenant}, window)


def make(
    connection: Connection,
    asker: Asker,
    name: str | None,
    profile: tuple[str, str],
    metadata: Mapping[str, Any],
    closed: bool,
) -> Known:
    """Make a bank, of which the asker is to be the admin; the asker's role is admin too.

    profile: id and spec as JSON. Everyone of the tenant reads it unless it is `closed`. Without a
    name it gets one. Raises ConflictError when the name is taken.
    """
    tenant = asker.tenant or 0
    bank = add_bank(connection, tenant, name or f"bank-{secrets.token_hex(6)}", *profile, closed)
    maker = connection.execute(_MAKER, {"tenant": tenant, "id": asker.principal}).scalar()
    if maker is None:
        raise ConflictError("who makes the bank was removed meanwhile: nothing is made")
    members.put(connection, tenant, bank.id, f"principal:{maker}", BankRole.ADMIN)
    if metadata:
        _update(connection, tenant, bank.id, None, metadata)
    return find(connection, asker, bank.id)


_MAKER = text("SELECT name FROM principal WHERE tenant_id = :tenant AND id = :id")


def change(
    connection: Connection,
    asker: Asker,
    id: int,
    name: str | None,
    metadata: Mapping[str, Any] | None,
) -> Known:
    """Give a bank another name or other metadata, in the role admin; None leaves them.

    Raises NotFoundError where the asker has no role in the bank, ForbiddenError where it is no
    admin of it, ConflictError for a name that is taken, UsageError for one that names nothing.
    """
    find(connection, asker, id)
    require(connection, id, BankRole.ADMIN)
    kept = None if name is None else named(name, "bank")
    try:
        _update(connection, asker.tenant or 0, id, kept, metadata)
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != "23505":
            raise
        raise ConflictError(f"bank {name!r} exists already: choose another name") from None
    return find(connection, asker, id)


def remove(connection: Connection, asker: Asker, id: int) -> Deleted:
    """Delete a bank with its documents and memories, in the role admin; uploaded files stay.

    `documents.uncached` is to follow. Raises NotFoundError where the asker has no role in the bank,
    ForbiddenError where it is no admin of it.
    """
    find(connection, asker, id)
    require(connection, id, BankRole.ADMIN)
    tenant = asker.tenant or 0
    values = {"tenant": tenant, "id": id}
    # In the order in which workers lock them.
    connection.execute(
        text("SELECT FROM bank WHERE tenant_id = :tenant AND id = :id FOR UPDATE"), values
    )
    held = connection.execute(
        text(
            "SELECT id FROM document WHERE tenant_id = :tenant AND bank_id = :id"
            " ORDER BY id FOR UPDATE"
        ),
        values,
    ).scalars()
    deleted = documents.delete(connection, tenant, [(id, document) for document in held])
    connection.execute(text("DELETE FROM bank WHERE tenant_id = :tenant AND id = :id"), values)
    return deleted


def _update(
    connection: Connection,
    tenant: int,
    id: int,
    name: str | None,
    metadata: Mapping[str, Any] | None,
) -> None:
    connection.execute(
        text(
            "UPDATE bank SET name = coalesce(:name, name),"
            " metadata = CASE WHEN :keep THEN metadata ELSE :metadata END"
            " WHERE tenant_id = :tenant AND id = :id"
        ).bindparams(bindparam("metadata", type_=JSONB)),
        {
            "tenant": tenant,
            "id": id,
            "name": name,
            "keep": metadata is None,
            "metadata": dict(metadata or {}),
        },
    )


def add_bank(
    connection: Connection,
    tenant: int,
    name: str,
    profile: str,
    spec: str,
    closed: bool = False,
) -> Bank:
    """Make a bank under an encoder profile, whose reader everyone of the tenant is, or nobody yet;
    for an administrator to do. Raises ConflictError when the name is taken."""
    profiles.keep(connection, tenant, profile, spec)
    bank = insert(
        connection,
        f"bank {name!r}",
        "INSERT INTO bank (tenant_id, name, profile_id) VALUES (:tenant, :name, :profile)"
        " RETURNING id",
        tenant=tenant,
        name=named(name, "bank"),
        profile=profile,
    )
    if not closed:
        members.put(connection, tenant, bank, "everyone", BankRole.READER)
    return Bank(tenant, bank, name, profile, json.loads(spec))
