"""Chunks that wait to be encoded: their texts go out, and their memories come in."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pgvector import HalfVector
from sqlalchemy import Connection, text

from app.access.quota import Room
from app.db.session import Asker, keeping, transaction
from app.db.sql import statements
from app.errors import VaultError
from app.queue.outbox import Work, bury, take_all
from app.store import objects, unneeded
from app.vault.keyring import KeyName
from app.vault.seal import Place, current_key, require_key, seal

_SQL = statements(__file__)


@dataclass(frozen=True)
class Encoded:
    """A chunk's finished memory."""

    work: Work
    embedding: Sequence[float]
    payload: bytes


def chunk_texts(tenant: int, work: Sequence[Work]) -> dict[int, str]:
    """Chunk id -> text, of the chunks that still exist.

    Raises VaultError where this process could not seal what is made of them.
    """
    with transaction(Asker("worker", tenant)) as connection:
        require_key(connection, tenant)
        rows = connection.execute(
            text("SELECT id, text FROM chunk WHERE tenant_id = :tenant AND id = ANY(:ids)"),
            {"tenant": tenant, "ids": [w.chunk for w in work]},
        )
        return {row.id: row.text for row in rows}


def finish_encoding(tenant: int, profile: str, done: Sequence[Encoded]) -> int:
    """Write key and blob of each chunk whose lease still holds; how many were written.

    Blobs are sealed where a master key is set, and are objects where an object store is: these are
    written between two transactions, while none is open. Those that the tenant's quota has no room
    for go to dead_letter. Raises VaultError when the tenant's key cannot be had, UnavailableError
    when the object store does not answer.
    """
    asker, store = Asker("worker", tenant), objects.writing()
    if store is None:
        with transaction(asker) as connection:
            ready = _sealed(connection, tenant, profile, done)
            blobs = [(profile, payload) for _, payload in ready.kept]
            stored = objects.planned(tenant, blobs, None)
            return len(_written(connection, tenant, profile, ready, stored))
    with transaction(asker) as connection:
        ready = _sealed(connection, tenant, profile, done)
    blobs = [(profile, payload) for _, payload in ready.kept]
    stored = objects.planned(tenant, blobs, store)
    names = {one.location for one in stored if one.location is not None}
    try:
        with keeping(asker, names) as (_, begin):
            objects.write(stored, blobs, store)
            with begin() as connection:
                named = _written(connection, tenant, profile, ready, stored)
    except _OtherKeyError:
        unneeded.remove(tenant, names)
        return finish_encoding(tenant, profile, done)
    if lost := names - {one.location for one in named}:
        unneeded.remove(tenant, lost)
    return len(named)


class _OtherKeyError(VaultError):
    """The tenant got another key while its memories were being written: they are sealed again."""


@dataclass(frozen=True)
class _Ready:
    """Memories whose lease holds, with their bytes as they will be stored, and those that have no
    room; key: what they are sealed with."""

    kept: list[tuple[Encoded, bytes]]
    refused: list[Encoded]
    error: str
    key: KeyName | None


def _sealed(connection: Connection, tenant: int, profile: str, done: Sequence[Encoded]) -> _Ready:
    held = set(
        connection.execute(
            text(_SQL["held"]),
            {
                "tenant": tenant,
                "ids": [d.work.id for d in done],
                "tokens": list({d.work.token for d in done}),
            },
        ).scalars()
    )
    fresh = [d for d in done if d.work.id in held]
    room = Room.of(connection, tenant)
    key = current_key(connection, tenant) if fresh else None
    ready = _Ready([], [], room.error, key)
    for memory in fresh:
        chunk, payload = memory.work.chunk, memory.payload
        if key is not None and chunk is not None:
            payload = seal(key, Place(chunk, profile), payload)
        if room.take(len(payload)):
            ready.kept.append((memory, payload))
        else:
            ready.refused.append(memory)
    return ready


def _written(
    connection: Connection,
    tenant: int,
    profile: str,
    ready: _Ready,
    stored: Sequence[objects.Stored],
) -> list[objects.Stored]:
    """Write what is still leased; what rows say of it.

    Raises _OtherKeyError where the key was replaced: what it sealed would be lost with it.
    """
    works = [memory.work for memory, _ in ready.kept] + [m.work for m in ready.refused]
    held = take_all(connection, tenant, works) if works else set()
    for memory in ready.refused:
        if memory.work.id in held:
            bury(connection, memory.work, ready.error)
    if ready.kept and current_key(connection, tenant) != ready.key:
        raise _OtherKeyError(f"tenant {tenant} got another key meanwhile")
    rows, named = [], []
    for (memory, _), blob in zip(ready.kept, stored, strict=True):
        if memory.work.id not in held:
            continue
        named.append(blob)
        rows.append(
            {
                "tenant": tenant,
                "chunk": memory.work.chunk,
                "profile": profile,
                "bank": memory.work.bank,
                "document": memory.work.document,
                "embedding": HalfVector(list(memory.embedding)).to_text(),
                "version": ready.key and ready.key.version,
                **asdict(blob),
            }
        )
    if rows:
        connection.execute(text(_SQL["key"]), rows)
        connection.execute(text(_SQL["blob"]), rows)
    return named
