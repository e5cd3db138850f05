"""Work to do: leased fairly across tenants, finished under the lease, buried when hopeless.

A lease is a random token with a time limit on each row. Whatever makes the work obsolete (a new
revision, a deletion) removes the token or the row, so a worker that comes late changes nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.bank import profiles
from app.db.session import Asker, transaction
from app.db.sql import statements


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


# Leases need not outlive a crash of Postgres: a lost one makes the row free, and the worker's
# token void. So nobody waits for the disk to have them.
_UNAWAITED = text("SET LOCAL synchronous_commit = off")
_SQL = statements(__file__)
_WAITING = _SQL["waiting"] + "\n"
_PROFILES = text(_WAITING + _SQL["profiles"])
_CLAIM = text(_WAITING + _SQL["claim"])


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


def take(connection: Connection, work: Work) -> bool:
    """Remove a row from the outbox if its lease still holds."""
    return work.id in take_all(connection, work.tenant, [work])


def fail(work: Work, error: str, max_attempts: int, traceback: str = "") -> bool:
    """Put work back with a delay that doubles, or bury it in dead_letter; True when buried."""
    error = _storable(error)
    with transaction(Asker("worker", work.tenant)) as connection:
        if work.attempts < max_attempts:
            connection.execute(
                text(_SQL["put_back"]),
                {"tenant": work.tenant, "id": work.id, "token": work.token, "error": error},
            )
            return False
        if not take(connection, work):
            return False
        bury(connection, work, error, traceback)
        return True


def bury(connection: Connection, work: Work, error: str, traceback: str = "") -> None:
    """Note in dead_letter, or with its file, that work was given up. It is to be taken before."""
    if work.file is not None:  # it has a place for its error, and can be put in again
        finish_file(connection, work, error, "server_error")
        return
    connection.execute(
        text(_SQL["bury"]),
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


def take_all(connection: Connection, tenant: int, work: Sequence[Work]) -> set[int]:
    """Remove the rows whose leases still hold; their ids."""
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
