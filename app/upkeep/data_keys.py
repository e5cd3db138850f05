"""Tenants' data keys, for operators: the state of encryption, new data keys, new master keys."""

from typing import Any

from sqlalchemy import text

from app.access import audit
from app.access.tenants import tenant_id
from app.db.session import Asker, transaction
from app.db.sql import statements
from app.errors import ConflictError, UsageError
from app.vault import keyring
from app.vault.keyring import KeyName
from app.vault.masters import masters
from app.vault.seal import add_key, last_version

_SQL = statements(__file__)
_STATUS = text(_SQL["status"])


def status() -> dict[str, Any]:
    """Return the masters' ids and, for each tenant, its plain blobs and the versions of its key.

    For each version: the number of blobs, when it was created and destroyed, and whether the
    keyring has its file.
    """
    tenants: dict[str, dict[str, Any]] = {}
    with transaction(Asker("admin")) as connection:
        for row in connection.execute(_STATUS):
            tenant = tenants.setdefault(
                row.tenant, {"tenant": row.tenant, "plain_blobs": row.plain, "keys": []}
            )
            if row.version is not None:
                tenant["keys"].append(
                    {
                        "version": row.version,
                        "blobs": row.blobs,
                        "created": row.created_at,
                        "destroyed": row.destroyed_at,
                        "in_keyring": keyring.exists(KeyName(row.tenant_id, row.version, row.id)),
                    }
                )
    return {
        "masters": [master.id for master in masters()],
        "keyring": str(keyring.folder()),
        "tenants": list(tenants.values()),
    }


def rotate(name: str) -> int:
    """Make a tenant's next data key and return its version.

    The relay then seals all of the tenant's memories again under it. Raises NotFoundError for an
    unknown tenant, UsageError without a master key, and ConflictError when another process has
    just made a key.
    """
    with transaction(Asker("admin")) as connection:
        tenant = tenant_id(connection, name)
        if not masters():
            raise UsageError(
                "no master key is set: set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY"
            )
        key = add_key(connection, tenant, last_version(connection, tenant) + 1)
        if key is None:
            raise ConflictError(f"tenant {name!r} has just got a new key: see membank vault status")
        audit.note(connection, tenant, "vault", detail={"key_made": key.version})
    return key.version


def rewrap() -> int:
    """Wrap every data key with the current master key; return how many were not. Raises VaultError,
    and UsageError without a master key."""
    count = 0
    for key in keyring.rewrap():
        count += 1
        with transaction(Asker("admin", key.tenant)) as connection:
            audit.note(connection, key.tenant, "vault", detail={"key_rewrapped": key.version})
    return count
