"""Blobs are sealed: AES-256-GCM under their tenant's data key, bound to the row that they stand in.

A sealed blob is a nonce of 12 bytes, the ciphertext and a tag of 16. Tenant, chunk, profile and key
version are authenticated with it, so what is moved to another row does not open.
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
    """The row that a blob stands in."""

    chunk: int
    profile: str

    def within(self, key: KeyName) -> bytes:
        return f"membank blob {key.tenant} {self.chunk} {self.profile} {key.version}".encode()


def seal(key: KeyName, place: Place, payload: bytes) -> bytes:
    """The payload as it is stored. Raises VaultError when the key cannot be had."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + keyring.cipher(key).encrypt(nonce, payload, place.within(key))


def unseal(key: KeyName, place: Place, stored: bytes) -> bytes:
    """The payload again. Raises VaultError when the key cannot be had or it does not open."""
    view = memoryview(stored)
    try:
        return keyring.cipher(key).decrypt(
            view[:NONCE_BYTES], view[NONCE_BYTES:], place.within(key)
        )
    except (InvalidTag, ValueError):
        raise VaultError(
            f"memory {place.chunk} does not open with version {key.version} of its tenant's key:"
            " it was changed, or stood in another row. Delete it, and it is encoded again"
        ) from None


def current_key(connection: Connection, tenant: int) -> KeyName | None:
    """What new memories of a tenant are sealed with, held until the transaction ends.

    None where nothing is encrypted: no master key is set. With the first memory after one is set
    the tenant's first key is made. Raises VaultError where it has keys and no master is set.
    """
    last = last_version(connection, tenant)  # first: a key that another makes meanwhile is found
    held = _held(connection, tenant)
    if held is None and masters():
        add_key(connection, tenant, last + 1)
        held = _held(connection, tenant)
    if held is not None and not masters():
        raise VaultError(
            f"memories of tenant {tenant} are encrypted, and no master key is set:"
            " set MEMBANK_MASTER_KEY_FILE or MEMBANK_MASTER_KEY"
        )
    return held


def require_key(connection: Connection, tenant: int) -> None:
    """Raises VaultError where memories of a tenant could not be sealed in this process."""
    key = current_key(connection, tenant)
    if key is not None:
        keyring.cipher(key)


def last_version(connection: Connection, tenant: int) -> int:
    """The highest version of a tenant's key, 0 before the first."""
    return int(
        connection.execute(
            text("SELECT coalesce(max(version), 0) FROM tenant_key WHERE tenant_id = :tenant"),
            {"tenant": tenant},
        ).scalar_one()
    )


def add_key(connection: Connection, tenant: int, version: int) -> KeyName | None:
    """Make a version of a tenant's key; None when there is one, or another makes it right now."""
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


# Locked, so that a key is not destroyed between this look and the writing of what it seals. A wait
# for that ends with a row that is destroyed: the next look finds the newer one.
_CURRENT = text(
    "SELECT version, id FROM tenant_key WHERE tenant_id = :tenant AND destroyed_at IS NULL"
    " ORDER BY version DESC LIMIT 1 FOR KEY SHARE"
)


def _held(connection: Connection, tenant: int) -> KeyName | None:
    for _ in range(2):
        row = connection.execute(_CURRENT, {"tenant": tenant}).one_or_none()
        if row is not None:
            return KeyName(tenant, row.version, row.id)
    return None
