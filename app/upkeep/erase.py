"""Erases a tenant: destroys its keys, deletes its rows and returns a receipt."""

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.access.tenants import tenant_id
from app.db.session import Asker, transaction
from app.errors import MembankError, VaultError
from app.store.disk import disk
from app.upkeep.leftovers import collect_of
from app.vault import keyring
from app.vault.keyring import KeyName

# Everything that belongs to a tenant refers to one of these rows, so new rows wait for the locks.
_LOCKS = (
    "SELECT FROM tenant WHERE id = :tenant FOR UPDATE",
    "SELECT FROM principal WHERE tenant_id = :tenant FOR UPDATE",
    "SELECT FROM bank WHERE tenant_id = :tenant FOR UPDATE",
    "SELECT FROM document WHERE tenant_id = :tenant ORDER BY bank_id, id FOR UPDATE",
)


def erase(name: str) -> dict[str, Any]:
    """Delete a tenant and return a receipt.

    The receipt holds tenant, id, rows by table, blob_bytes, objects, keys_destroyed, keys_missing,
    and cache_entries of this machine. keys_missing names keys that the keyring does not have: they
    were destroyed before, or are in another folder. The keys are destroyed first and for good: if
    the deletion then fails, the memories are unreadable, and erasing again completes it.
    Raises NotFoundError, and VaultError when the tenant has keys but the keyring does not exist.
    """
    with transaction(Asker("admin")) as connection:
        tenant = tenant_id(connection, name)
        for lock in _LOCKS:
            connection.execute(text(lock), {"tenant": tenant})
        receipt: dict[str, Any] = {"tenant": name, "id": tenant, "rows": _rows(connection, tenant)}
        receipt["blob_bytes"], receipt["objects"] = connection.execute(
            _BYTES, {"tenant": tenant}
        ).one()
        folder = disk()
        receipt["cache_entries"] = folder.forget(tenant) if folder else 0
        receipt |= _destroyed(_keys(connection, tenant))
        connection.execute(text("DELETE FROM tenant WHERE id = :tenant"), {"tenant": tenant})
        connection.execute(
            text("SELECT audit_erase(:tenant, :receipt)").bindparams(
                bindparam("receipt", type_=JSONB)
            ),
            {"tenant": tenant, "receipt": receipt},
        )
    if receipt["objects"]:
        with suppress(MembankError):  # the relay removes them once the store answers again
            collect_of(tenant)
    return receipt


_BYTES = text(
    "SELECT coalesce(sum(coalesce(size, octet_length(payload))), 0)::bigint,"
    " count(DISTINCT location) FROM memory_blob WHERE tenant_id = :tenant"
)


def _rows(connection: Connection, tenant: int) -> dict[str, int]:
    """Count the tenant's rows in every table that has a tenant_id."""
    tables = connection.execute(
        text(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
            " AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY 1"
        )
    ).scalars()
    counts: dict[str, int] = {}
    for table in tables.all():
        name = connection.dialect.identifier_preparer.quote(table)
        query = text(f"SELECT count(*) FROM {name} WHERE tenant_id = :tenant")  # noqa: S608 (quoted)
        counts[table] = connection.execute(query, {"tenant": tenant}).scalar_one()
    return counts


def _destroyed(keys: list[KeyName]) -> dict[str, Any]:
    if keys and not keyring.folder().is_dir():
        raise VaultError(
            f"the tenant has keys, but the keyring {keyring.folder()} does not exist:"
            " set MEMBANK_KEYRING to the folder that the worker and the relay use"
        )
    found = {key.id: keyring.destroy(key) for key in keys}
    missing = [str(name) for name, there in found.items() if not there]
    return {"keys_destroyed": len(found) - len(missing), "keys_missing": missing}


def _keys(connection: Connection, tenant: int) -> list[KeyName]:
    """The tenant's keys that no rotation has destroyed."""
    rows = connection.execute(
        text(
            "SELECT version, id FROM tenant_key WHERE tenant_id = :tenant AND destroyed_at IS NULL"
        ),
        {"tenant": tenant},
    )
    return [KeyName(tenant, row.version, row.id) for row in rows]
