"""Seals plain blobs, and those under older keys, with the current key; then destroys older keys.

The rows show what has been done, so it can be interrupted at any point. No transaction is open
while the object store works, and a row that somebody has changed stays as it is.
"""

import threading
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from app.access import audit
from app.db.session import Asker, driver_of, transaction
from app.db.tenants import next_tenant
from app.errors import BlobError, VaultError
from app.store import objects
from app.store.rewrite import Rewritten, rewrite
from app.vault import keyring
from app.vault.keyring import KeyName
from app.vault.masters import masters
from app.vault.seal import Place, current_key, seal, unseal

_PAGE = 50
"""Blobs at a time, about 4 MB."""


@dataclass
class Resealed:
    """Counts of blobs sealed and keys destroyed, and the faults that were met."""

    blobs: int = 0
    keys_destroyed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.blobs or self.keys_destroyed or self.faults)


def reseal(stop: threading.Event | None = None, page: int = _PAGE) -> Resealed:
    """Go through all tenants once, as a worker, until done or `stop` is set.

    A fault in one tenant does not hold up the others. Without a master key nothing is done.
    Raises UnavailableError.
    """
    done = Resealed()
    tenant = next_tenant(0) if masters() else None
    while tenant is not None and not (stop and stop.is_set()):
        try:
            reseal_tenant(tenant, done, stop, page)
        except (BlobError, VaultError) as error:
            done.faults.append(str(error))
        tenant = next_tenant(tenant)
    return done


def reseal_tenant(
    tenant: int, done: Resealed, stop: threading.Event | None = None, page: int = _PAGE
) -> None:
    """Reseal one tenant's blobs and add the counts to `done`.

    Raises VaultError for a blob that does not open, BlobError for an object that is lost.
    """
    rows = page
    while rows == page and not (stop and stop.is_set()):
        rows, resealed = _page(tenant, page)
        done.blobs += resealed
    if rows < page:
        with transaction(Asker("worker", tenant)) as connection:
            done.keys_destroyed += _destroy(connection, tenant)


# Versions only rise, so the index finds what is left.
_LEFT = (
    "SELECT b.chunk_id, b.profile_id, b.payload, b.location, b.sha256, b.key_version, t.id"
    " FROM memory_blob b LEFT JOIN tenant_key t"
    " ON t.tenant_id = b.tenant_id AND t.version = b.key_version"
    " WHERE b.tenant_id = %s AND (b.key_version IS NULL OR b.key_version < %s) LIMIT %s"
)


def _page(tenant: int, page: int) -> tuple[int, int]:
    """How many blobs were looked at, and how many of them were sealed anew."""
    asker = Asker("worker", tenant)
    with transaction(asker) as connection:
        key = current_key(connection, tenant) if _anything(connection, tenant) else None
        if key is None:
            return 0, 0
        with driver_of(connection).cursor(binary=True) as cursor:
            rows = cursor.execute(_LEFT, (tenant, key.version, page)).fetchall()
    away = [row[3] for row in rows if row[3] is not None]
    found = objects.reading().get(away) if away else {}
    sealed = []
    for chunk, profile, payload, location, sha256, version, id in rows:
        place, stored = Place(chunk, profile), found.get(location, payload)
        if stored is None:
            _require_changed(asker, place, location)
            continue
        if version is not None:
            stored = unseal(KeyName(tenant, version, id), place, stored)
        sealed.append(Rewritten(chunk, profile, seal(key, place, stored), sha256, location))
    done = rewrite(
        tenant,
        sealed,
        objects.writing(),
        key.version,
        lambda connection: current_key(connection, tenant) == key,
    )
    return len(rows), done


def _require_changed(asker: Asker, place: Place, location: str) -> None:
    """Raises BlobError where a row still names an object that is missing."""
    values = {"tenant": asker.tenant, "chunk": place.chunk, "profile": place.profile}
    with transaction(asker) as connection:
        now = connection.execute(_LOCATION, values).scalar()
    if now == location:
        raise BlobError(f"object {location} is missing: delete its row, and it is encoded again")


_LOCATION = text(
    "SELECT location FROM memory_blob"
    " WHERE tenant_id = :tenant AND chunk_id = :chunk AND profile_id = :profile"
)


def _anything(connection: Connection, tenant: int) -> bool:
    """Whether the tenant has any blob: without one it needs no key."""
    return bool(
        connection.execute(
            text("SELECT EXISTS (SELECT FROM memory_blob WHERE tenant_id = :tenant)"),
            {"tenant": tenant},
        ).scalar()
    )


# Waits for whoever seals with one of them now; the look for what they sealed comes after that.
_OLDER = text(
    "SELECT version, id FROM tenant_key k WHERE tenant_id = :tenant AND destroyed_at IS NULL"
    " AND version < (SELECT max(version) FROM tenant_key WHERE tenant_id = :tenant)"
    " ORDER BY version FOR UPDATE"
)
_UNUSED = text(
    "UPDATE tenant_key SET destroyed_at = now() WHERE tenant_id = :tenant AND version = :version"
    " AND NOT EXISTS (SELECT FROM memory_blob WHERE tenant_id = :tenant AND key_version = :version)"
)


def _destroy(connection: Connection, tenant: int) -> int:
    gone = 0
    for row in connection.execute(_OLDER, {"tenant": tenant}).all():
        if connection.execute(_UNUSED, {"tenant": tenant, "version": row.version}).rowcount:
            keyring.destroy(KeyName(tenant, row.version, row.id))
            audit.note(connection, tenant, "vault", detail={"key_destroyed": row.version})
            gone += 1
    return gone
