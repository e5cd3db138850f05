"""Work to do: leased fairly across tenants, finished under the lease, buried when hopeless.

A lease is a random token with a time limit on each row. Whatever makes the work obsolete (a new
revision, a deletion) removes the token or the row, so a worker that comes late changes nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pgvector import HalfVector
from sqlalchemy import Connection, text

from app.access.quota import Room
from app.bank import profiles
from app.db.session import Asker, keeping, transaction
from app.errors import VaultError
from app.store import objects, unneeded
from app.vault.keyring import KeyName
from app.vault.seal import Place, current_key, require_key, seal


@dataclass(frozen=True)
class Work:
    """One leased row: store a file, split a document (`chunk` and `file` None) or encode a chunk.

    document: empty where a file is to be stored.
    """

    tenant: int
    id: int
    bank: int
    document: str
    chunk: int | None
    profile: str
    revision: int
    attempts: int
    token: uuid.UUID
    file: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A chunk's finished memory."""

    work: Work
    embedding: Sequence[float]
    payload: bytes


# Leases need not outlive a crash of Postgres: a lost one makes the row free, and the worker's
# token void. So nobody waits for the disk to have them.
_UNAWAITED = text("SET LOCAL synchronous_commit = off")
_DUE = "not_before <= now() AND (lease_until IS NULL OR lease_until < now())"
# Tenants and their profiles are found by skipping through the index from one to the next, whatever
# number of rows each has; then those that are not paused and have due work are kept. LATERAL with
# LIMIT, because an EXISTS may be turned into a join that reads the whole outbox.
_WAITING = f"""
    WITH RECURSIVE pair AS (
        (SELECT tenant_id, profile_id FROM outbox ORDER BY tenant_id, profile_id LIMIT 1)
        UNION ALL
        SELECT o.tenant_id, o.profile_id FROM pair p CROSS JOIN LATERAL (
            SELECT tenant_id, profile_id FROM outbox
            WHERE (tenant_id, profile_id) > (p.tenant_id, p.profile_id)
            ORDER BY tenant_id, profile_id LIMIT 1) o
    ), waiting AS (
        SELECT p.tenant_id, p.profile_id FROM pair p CROSS JOIN LATERAL (
            SELECT FROM outbox
            WHERE tenant_id = p.tenant_id AND profile_id = p.profile_id AND {_DUE}
            ORDER BY priority DESC, chunk_id NULLS FIRST, id LIMIT 1) o
        WHERE p.profile_id = coalesce(cast(:profile AS text), p.profile_id)
            AND p.tenant_id NOT IN (SELECT paused_tenants())
    )"""  # noqa: S608 (words of ours)
_PROFILES = text(f"{_WAITING} SELECT DISTINCT profile_id FROM waiting")  # noqa: S608
# Each tenant gives its first rows, in the index's order.
_CLAIM = text(
    f"""{_WAITING}, turn AS (
        SELECT tenant_id, row_number() OVER (ORDER BY random()) AS place,
               count(*) OVER () AS tenants
        FROM waiting
    ), picked AS (
        SELECT o.tenant_id, o.id FROM turn CROSS JOIN LATERAL (
            SELECT tenant_id, id FROM outbox
            WHERE tenant_id = turn.tenant_id AND profile_id = :profile AND {_DUE}
            ORDER BY priority DESC, chunk_id NULLS FIRST, id
            LIMIT greatest(1, :count / turn.tenants)
            FOR UPDATE SKIP LOCKED) o
        WHERE turn.place <= :count
    )
    UPDATE outbox o SET lease_token = :token, attempts = attempts + 1,
        lease_until = now() + make_interval(secs => :seconds)
    -- As arrays: a join reads the whole outbox, because the planner cannot know the LIMIT above.
    WHERE o.tenant_id = ANY(ARRAY(SELECT tenant_id FROM picked))
          AND o.id = ANY(ARRAY(SELECT id FROM picked))
    RETURNING o.tenant_id, o.id, o.bank_id, coalesce(o.document_id, '') AS document_id, o.chunk_id,
        o.revision, o.attempts, o.file_id
    """  # noqa: S608 (words of ours)
)


def claim(profile: str, count: int, seconds: float) -> list[Work]:
    """Lease up to about `count` rows of a profile for `seconds`, the same number per tenant."""
    token = uuid.uuid4()
    with transaction(Asker("worker")) as connection:
        connection.execute(_UNAWAITED)
        rows = connection.execute(
            _CLAIM, {"profile": profile, "count": count, "seconds": seconds, "token": token}
        ).all()
    return [
        Work(
            r.tenant_id,
            r.id,
            r.bank_id,
            r.document_id,
            r.chunk_id,
            profile,
            r.revision,
            r.attempts,
            token,
            r.file_id,
        )
        for r in rows
    ]


def renew(work: Sequence[Work], seconds: float) -> None:
    """Hold the leases for `seconds` from now."""
    with transaction(Asker("worker")) as connection:
        connection.execute(_UNAWAITED)
        connection.execute(
            text(
                "UPDATE outbox SET lease_until = now() + make_interval(secs => :seconds)"
                " WHERE lease_token = ANY(:tokens) AND tenant_id = ANY(:tenants)"
            ),
            {
                "seconds": seconds,
                "tokens": list({w.token for w in work}),
                "tenants": list({w.tenant for w in work}),
            },
        )


def waiting_profiles() -> list[str]:
    """Profiles that have work which nobody holds, of tenants that are not paused."""
    with transaction(Asker("worker")) as connection:
        return list(connection.execute(_PROFILES, {"profile": None}).scalars())


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
            _HELD,
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


_HELD = text(
    "SELECT id FROM outbox WHERE tenant_id = :tenant AND id = ANY(:ids)"
    " AND lease_token = ANY(:tokens)"
)


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
    held = _take(connection, tenant, works) if works else set()
    for memory in ready.refused:
        if memory.work.id in held:
            _bury(connection, memory.work, ready.error)
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
        connection.execute(_KEY, rows)
        connection.execute(_BLOB, rows)
    return named


_KEY = text(
    "INSERT INTO memory_key (tenant_id, chunk_id, profile_id, bank_id, document_id, embedding)"
    " VALUES (:tenant, :chunk, :profile, :bank, :document, cast(:embedding AS halfvec))"
    " ON CONFLICT (tenant_id, chunk_id, profile_id) DO UPDATE"
    " SET embedding = excluded.embedding, encoded_at = now()"
)
_BLOB = text(
    "INSERT INTO memory_blob"
    " (tenant_id, chunk_id, profile_id, sha256, payload, key_version, location, size)"
    " VALUES (:tenant, :chunk, :profile, :sha256, :payload, :version, :location, :size)"
    " ON CONFLICT (tenant_id, chunk_id, profile_id) DO UPDATE SET sha256 = excluded.sha256,"
    " payload = excluded.payload, key_version = excluded.key_version,"
    " location = excluded.location, size = excluded.size"
)


def take(connection: Connection, work: Work) -> bool:
    """Remove a row from the outbox if its lease still holds."""
    return work.id in _take(connection, work.tenant, [work])


def fail(work: Work, error: str, max_attempts: int, traceback: str = "") -> bool:
    """Put work back with a delay that doubles, or bury it in dead_letter; True when buried."""
    error = _storable(error)
    with transaction(Asker("worker", work.tenant)) as connection:
        if work.attempts < max_attempts:
            connection.execute(
                text(
                    "UPDATE outbox SET lease_token = NULL, lease_until = NULL, last_error = :error,"
                    " not_before = now() + make_interval("
                    "secs => least(60, 0.5 * 2 ^ attempts) * (0.5 + random()))"
                    " WHERE tenant_id = :tenant AND id = :id AND lease_token = :token"
                ),
                {"tenant": work.tenant, "id": work.id, "token": work.token, "error": error},
            )
            return False
        if not take(connection, work):
            return False
        _bury(connection, work, error, traceback)
        return True


def _bury(connection: Connection, work: Work, error: str, traceback: str = "") -> None:
    if work.file is not None:  # it has a place for its error, and can be put in again
        finish_file(connection, work, error, "server_error")
        return
    connection.execute(
        text(
            "INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, profile_id,"
            " attempts, error, traceback) VALUES (:tenant, :bank, :document, :chunk, :profile,"
            " :attempts, :error, :traceback)"
        ),
        {
            "tenant": work.tenant,
            "bank": work.bank,
            "document": work.document,
            "chunk": work.chunk,
            "profile": None if work.chunk is None else work.profile,
            "attempts": work.attempts,
            "error": error,
            "traceback": _storable(traceback),
        },
    )


def finish_file(connection: Connection, work: Work, error: str | None, code: str | None) -> None:
    """Note that a file was stored, or why not all of it was. The work is to be taken before."""
    connection.execute(
        _FINISH_FILE,
        {
            "tenant": work.tenant,
            "bank": work.bank,
            "file": work.file,
            "state": "stored" if error is None else "failed",
            "error": error and _storable(error),
            "code": code,
        },
    )


_FINISH_FILE = text(
    "UPDATE bank_file SET state = :state, error = :error, error_code = :code"
    " WHERE tenant_id = :tenant AND bank_id = :bank AND file_id = :file AND state = 'storing'"
)


def _storable(message: str) -> str:
    # A library may quote what Postgres holds in no text: then the failure could not be written,
    # and the work would come back for ever.
    return message.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def release(work: Sequence[Work]) -> None:
    """Hand work back as if it had never been leased."""
    _hand_back(work)


def postpone(work: Sequence[Work], reason: str) -> None:
    """Hand work back that another worker may be able to do: no attempt is counted, and it is due
    again in some half a minute."""
    later = "not_before = now() + make_interval(secs => 20 + 20 * random())"
    _hand_back(work, f", last_error = :reason, {later}", reason=_storable(reason))


def _hand_back(work: Sequence[Work], also: str = "", **values: str) -> None:
    """also: further columns to set, words of ours."""
    with transaction(Asker("worker")) as connection:
        connection.execute(_UNAWAITED)
        connection.execute(
            text(
                "UPDATE outbox SET lease_token = NULL, lease_until = NULL,"  # noqa: S608 (words of ours)
                f" attempts = attempts - 1{also}"
                " WHERE lease_token = ANY(:tokens) AND tenant_id = ANY(:tenants) AND id = ANY(:ids)"
            ),
            {
                "tokens": list({w.token for w in work}),
                "tenants": list({w.tenant for w in work}),
                "ids": [w.id for w in work],
                **values,
            },
        )


_LOCK_DOCUMENTS = (
    "SELECT FROM document WHERE tenant_id = :tenant AND (bank_id, id) IN"
    " (SELECT * FROM unnest(cast(:banks AS bigint[]), cast(:documents AS text[])))"
    " ORDER BY bank_id, id FOR "
)


_LOCK_FILES = text(
    "SELECT FROM bank_file WHERE tenant_id = :tenant AND (bank_id, file_id) IN"
    " (SELECT * FROM unnest(cast(:banks AS bigint[]), cast(:files AS text[])))"
    " ORDER BY bank_id, file_id FOR UPDATE"
)


def _take(connection: Connection, tenant: int, work: Sequence[Work]) -> set[int]:
    # A deletion locks the document or the file before its rows here. So does this, or both could
    # wait for each other. Edits may go on beside the writing of memories, but not beside a split.
    if any(w.file for w in work):
        connection.execute(
            _LOCK_FILES,
            {
                "tenant": tenant,
                "banks": [w.bank for w in work],
                "files": [w.file for w in work],
            },
        )
    lock = "KEY SHARE"
    if splits := {w.bank for w in work if w.chunk is None and w.file is None}:
        profiles.hold(connection, tenant, splits)
        lock = "UPDATE"
    connection.execute(
        text(_LOCK_DOCUMENTS + lock),
        {
            "tenant": tenant,
            "banks": [w.bank for w in work],
            "documents": [w.document for w in work],
        },
    )
    rows = connection.execute(
        text(
            "DELETE FROM outbox WHERE tenant_id = :tenant AND id = ANY(:ids)"
            " AND lease_token = ANY(:tokens) RETURNING id"
        ),
        {
            "tenant": tenant,
            "ids": [w.id for w in work],
            "tokens": list({w.token for w in work}),
        },
    )
    return set(rows.scalars())
