"""Seals blobs with AES-256-GCM under their tenant's data key, each bound to the row that holds it.

A sealed blob is a 12-byte nonce, the ciphertext and a 16-byte tag. The tenant, chunk, profile and
key version are authenticated too, so a blob that is moved to another row does not open.
"""

import secrets
import uuid
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from sqlalchemy import Connection, text

from app.errors import VaultError
from app.vault import keyring
from app.vault.keyring import KeyName
from app.vault.masters import NONCE_BYTES, masters


@dataclass(frozen=True)
class Place:
    """The row that holds a blob."""

    chunk: int
    profile: str

    def within(self, key: KeyName) -> bytes:
        return f"membank blob {key.tenant} {self.chunk} {self.profile} {key.version}".encode()


def seal(key: KeyName, place: Place, payload: bytes) -> bytes:
    """Encrypt a payload for storage. Raises VaultError when the key is missing or does not open."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + keyring.cipher(key).encrypt(nonce, payload, place.within(key))


def unseal(key: KeyName, place: Place, stored: bytes) -> bytes:
    """Decrypt a stored payload.

    Raises VaultError when the key is missing, or when key or payload does not open.
    """
    view = memoryview(stored)
    try:
        return keyring.cipher(key).decrypt(
            view[:NONCE_BYTES], view[NONCE_BYTES:], place.within(key)
        )
    except (InvalidTag, ValueError):
        raise VaultError(
            f"memory {place.chunk} does not open with version {key.version} of its tenant's key:"
            " it was changed, or comes from another row. Delete it, and it is encoded again"
        ) from None


def current_key(connection: Connection, tenant: int) -> KeyName | None:
    """The key that seals a tenant's new memories, locked until the transaction ends.

    None when no master key is set, and so nothing is encrypted. The tenant's first key is made on
    the first call after a master key is set. Raises VaultError when the tenant has keys but no
    master key is set.
    """
    last = last_version(connection, tenant)  # read first, to find a key made by others meanwhile
    newest = _newest_locked(connection, tenant)
    if newest is None and masters():
        add_key(connection, tenant, last + 1)
        newest = _newest_locked(connection, tenant)
    if newest is not None and not masters():
        raise VaultError(
            f"memories of tenant {tenant} are encrypted, but no master key is set:"
            " set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY"
        )
    return newest


def require_key(connection: Connection, tenant: int) -> None:
    """Raises VaultError when this process could not seal a tenant's memories."""
    key = current_key(connection, tenant)
    if key is not None:
        keyring.cipher(key)


def last_version(connection: Connection, tenant: int) -> int:
    """The highest version of a tenant's keys; 0 before the first."""
    return int(
        connection.execute(
            text("SELECT coalesce(max(version), 0) FROM tenant_key WHERE tenant_id = :tenant"),
            {"tenant": tenant},
        ).scalar_one()
    )


def add_key(connection: Connection, tenant: int, version: int) -> KeyName | None:
    """Make a version of a tenant's key; None if it exists, or if another process is making it."""
    key = KeyName(tenant, version, uuid.uuid4())
    keyring.make(key)  # before it has a row: a row without a key would be worse
    try:
        if connection.execute(
            text(
                "INSERT INTO tenant_key (tenant_id, version, id) VALUES (:tenant, :version, :id)"
                " ON CONFLICT DO NOTHING"
            ),
            {"tenant": tenant, "version": key.version, "id": key.id},
        ).rowcount:
            return key
    except BaseException:
        keyring.destroy(key)
        raise
    keyring.destroy(key)
    return None


# The lock keeps the key from being destroyed between this query and the writing of what it seals.
# After waiting for a transaction that destroyed the key, no row is left; asking again finds the
# newer key.
_CURRENT = text(
    "SELECT version, id FROM tenant_key WHERE tenant_id = :tenant AND destroyed_at IS NULL"
    " ORDER BY version DESC LIMIT 1 FOR KEY SHARE"
)


def _newest_locked(connection: Connection, tenant: int) -> KeyName | None:
    for _ in range(2):
        row = connection.execute(_CURRENT, {"tenant": tenant}).one_or_none()
        if row is not None:
            return KeyName(tenant, row.version, row.id)
    return None
