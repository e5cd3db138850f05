"""Banks as those see, make and change them who have a role there."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from app.access.tenants import tenant_id
from app.bank import documents, profiles
from app.bank.find import Bank
from app.bank.members import grant
from app.bank.roles import Role, require
from app.db.names import insert, named
from app.db.paging import Rows, Window, page
from app.db.session import Asker, transaction
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


def find(asker: Asker, id: int) -> Known:
    """Raises NotFoundError, also where the asker has no role in the bank."""
    with transaction(asker) as connection:
        row = connection.execute(
            text(f"{_KNOWN} AND id = :id"), {"tenant": asker.tenant, "id": id}
        ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no bank of the number {id}, or it is closed to you")
    return Known(int(row.id), row.name, row.created_at, row.metadata)


def listing(asker: Asker, window: Window) -> Rows:
    """A page of the banks in which the asker has a role, with the fields of Known; id is text."""
    with transaction(asker) as connection:
        return page(connection, _KNOWN, {"tenant": asker.tenant}, window)


def make(
    asker: Asker,
    tenant: str,
    principal: str,
    name: str | None,
    profile: tuple[str, str],
    metadata: Mapping[str, Any],
    closed: bool,
) -> Known:
    """Make a bank whose admin the asker is, named `tenant` and `principal`.

    profile: id and spec as JSON. Everyone of the tenant reads it unless it is `closed`. Without a
    name it gets one. Raises ConflictError when the name is taken.
    """
    bank = add_bank(tenant, name or f"bank-{secrets.token_hex(6)}", *profile, closed=closed)
    grant(bank, f"principal:{principal}", Role.ADMIN)
    if metadata:
        _update(bank.tenant, bank.id, None, metadata)
    return find(asker, bank.id)


def change(asker: Asker, id: int, name: str | None, metadata: Mapping[str, Any] | None) -> Known:
    """Give a bank another name or other metadata; None leaves them. Raises ForbiddenError where
    the asker is no admin of it, ConflictError, UsageError."""
    _require_admin(asker, id)
    try:
        _update(asker.tenant or 0, id, None if name is None else named(name, "bank"), metadata)
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != "23505":
            raise
        raise ConflictError(f"bank {name!r} exists already: choose another name") from None
    return find(asker, id)


def remove(asker: Asker, id: int) -> None:
    """Delete a bank with its documents and memories; uploaded files stay. Raises ForbiddenError
    where the asker is no admin of it."""
    _require_admin(asker, id)
    tenant = asker.tenant or 0
    values = {"tenant": tenant, "id": id}
    with transaction(Asker("admin", tenant)) as connection:
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
    documents.uncached(tenant, *deleted)


def _require_admin(asker: Asker, id: int) -> None:
    with transaction(Asker("worker", asker.tenant, asker.principal)) as connection:
        require(connection, id, Role.ADMIN)


def _update(tenant: int, id: int, name: str | None, metadata: Mapping[str, Any] | None) -> None:
    with transaction(Asker("admin", tenant)) as connection:
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


def add_bank(tenant: str, name: str, profile: str, spec: str, closed: bool = False) -> Bank:
    """Make a bank under an encoder profile, whose reader everyone of the tenant is, or nobody yet.

    Raises ConflictError when the name is taken.
    """
    owner = tenant_id(tenant)
    with transaction(Asker("admin", owner)) as connection:
        profiles.keep(connection, owner, profile, spec)
        bank = insert(
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
