"""The stored bytes of memories: who may read which, and where they are fetched from."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from app.db.session import Asker, driver_of, transaction
from app.db.sql import statements
from app.store import objects
from app.vault.keyring import KeyName
from app.vault.seal import Place, unseal


@dataclass(frozen=True)
class Held:
    """What the database records about a memory's bytes, without the bytes.

    `version` changes with every change of the row, `sha256` is that of the bytes as stored, `key`
    is the key that sealed them, if any, and `location` names the object that holds them, or is
    None if the row itself does.
    """

    tenant: int
    chunk: int
    profile: str
    version: str
    sha256: str
    key: KeyName | None
    location: str | None

    def open(self, stored: bytes) -> bytes:
        """Decrypt stored bytes if they are sealed, and return the packed memory.

        Raises VaultError when they do not open.
        """
        if self.key is None:
            return stored
        return unseal(self.key, Place(self.chunk, self.profile), stored)


_SQL = statements(__file__)
_READABLE = text(_SQL["readable"])


def readable(asker: Asker, profile: str, chunks: Sequence[int]) -> dict[int, Held]:
    """Return, by chunk id, those memories that a search could still return to `asker`.

    Leaves out memories that `asker` may no longer read, that were forgotten, or whose text has
    changed.
    """
    tenant = asker.tenant or 0
    values = {"tenant": tenant, "profile": profile, "chunks": list(chunks)}
    with transaction(asker) as connection:
        rows = connection.execute(_READABLE, values).all()
    return {
        r.chunk_id: Held(
            tenant,
            r.chunk_id,
            profile,
            r.version,
            r.sha256,
            None if r.key_version is None else KeyName(tenant, r.key_version, r.key_id),
            r.location,
        )
        for r in rows
    }


_PAYLOADS = (
    "SELECT chunk_id, xmin::text, payload FROM memory_blob"
    " WHERE tenant_id = %s AND profile_id = %s AND chunk_id = ANY(%s) AND payload IS NOT NULL"
)


def fetch(asker: Asker, profile: str, wanted: Sequence[Held]) -> dict[int, bytes]:
    """Return stored bytes by chunk id, for rows that `asker` may still read.

    Leaves out rows that have changed since `wanted` was read. Raises UnavailableError, and
    BlobError for a damaged object.
    """
    found: dict[int, bytes] = {}
    here = {held.chunk: held.version for held in wanted if held.location is None}
    if here:
        # Results as text would be hex, five times slower to receive.
        with transaction(asker) as connection, driver_of(connection).cursor(binary=True) as cursor:
            rows = cursor.execute(_PAYLOADS, (asker.tenant, profile, list(here))).fetchall()
        found = {chunk: payload for chunk, version, payload in rows if version == here[chunk]}
    there = {held.chunk: held.location for held in wanted if held.location is not None}
    if there:
        stored = objects.reading().get(list(there.values()))
        found |= {chunk: stored[name] for chunk, name in there.items() if name in stored}
    return found


def load_blobs(asker: Asker, profile: str, chunks: Sequence[int]) -> dict[int, bytes]:
    """Return the packed memories that `asker` may read, by chunk id, bypassing every cache.

    Raises VaultError for a sealed memory that does not open, BlobError for a damaged object.
    """
    held = readable(asker, profile, chunks)
    stored = fetch(asker, profile, list(held.values()))
    return {chunk: held[chunk].open(payload) for chunk, payload in stored.items()}


_ALIVE = text(
    "SELECT chunk_id, profile_id, xmin::text, sha256 FROM memory_blob"
    " WHERE tenant_id = :tenant AND chunk_id = ANY(:chunks)"
)


def alive(tenant: int, chunks: Sequence[int]) -> set[tuple[int, str, str, str]]:
    """Return (chunk, profile, version, sha256) of the memories of these chunks that still exist,
    whoever may read them."""
    with transaction(Asker("worker", tenant)) as connection:
        rows = connection.execute(_ALIVE, {"tenant": tenant, "chunks": list(chunks)})
        return {(row[0], row[1], row[2], row[3]) for row in rows}
