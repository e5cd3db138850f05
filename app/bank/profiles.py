"""A bank's change of encoder profile: begun, dropped, completed, and what is left of former ones.

The database does the work, for those who use SQL too: triggers on bank queue every chunk for the
next profile, and bank_switch makes it the bank's in one transaction when all of it is there.
"""

from collections.abc import Collection

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import IntegrityError

from app.errors import ConflictError

_PAGE = 1000
# Longer than any answer: one that was begun under the former profile reads its memories to the end.
_GRACE_SECONDS = 600


def keep(connection: Connection, tenant: int, profile: str, spec: str) -> None:
    """Let the database know a profile, whose `spec` is JSON, before a bank names it."""
    connection.execute(
        text(
            "INSERT INTO encoder_profile (tenant_id, id, spec)"
            " VALUES (:tenant, :id, cast(:spec AS jsonb)) ON CONFLICT DO NOTHING"
        ),
        {"tenant": tenant, "id": profile, "spec": spec},
    )


def begin(connection: Connection, tenant: int, bank: int, profile: str, spec: str) -> None:
    """Queue every chunk of a bank for another profile, to which the bank is switched at the end;
    for an administrator to do.

    Raises ConflictError when the bank has that profile, or its chunks are not made for it.
    """
    keep(connection, tenant, profile, spec)
    _set_next(connection, tenant, bank, profile)


def drop(connection: Connection, tenant: int, bank: int) -> None:
    """Let a change go that is under way, with its work; for an administrator to do. Harmless when
    there is none."""
    _set_next(connection, tenant, bank, None)


def _set_next(connection: Connection, tenant: int, bank: int, profile: str | None) -> None:
    try:
        connection.execute(
            text(
                "UPDATE bank SET next_profile_id = :profile WHERE tenant_id = :tenant AND id = :id"
            ),
            {"tenant": tenant, "id": bank, "profile": profile},
        )
    except IntegrityError as error:
        told = getattr(error.orig, "diag", None)
        if getattr(error.orig, "sqlstate", None) != "23001" or told is None:
            raise
        raise ConflictError(f"{told.message_primary}: {told.message_hint}") from None


def hold(connection: Connection, tenant: int, banks: Collection[int]) -> None:
    """Let nobody change the banks' profiles until the transaction ends.

    Before documents are locked: a change holds the bank and then looks at its documents.
    """
    connection.execute(_HOLD, {"tenant": tenant, "banks": list(banks)})


_HOLD = text(
    "SELECT FROM bank WHERE tenant_id = :tenant AND id = ANY(:banks) ORDER BY id FOR SHARE"
)


def changing(connection: Connection) -> list[tuple[int, int]]:
    """Tenant and bank of each change that is under way; a worker's to see, without a tenant."""
    rows = connection.execute(text("SELECT tenant_id, bank_id FROM changing_banks()"))
    return [(row.tenant_id, row.bank_id) for row in rows]


def switch(connection: Connection, tenant: int, bank: int) -> bool:
    """Switch a bank whose next profile is ready, as a worker; False where it is not."""
    return bool(
        connection.execute(
            text("SELECT bank_switch(:tenant, :bank)"), {"tenant": tenant, "bank": bank}
        ).scalar_one()
    )


def banks(connection: Connection, tenant: int) -> list[int]:
    """The ids of a tenant's banks, in order."""
    return list(connection.execute(_BANKS, {"tenant": tenant}).scalars())


def tidy(connection: Connection, tenant: int, bank: int) -> None:
    """Let go of work under profiles that a bank no longer has, as a worker."""
    _run_alone(connection, tenant, bank, _TIDY)


def remove_former(connection: Connection, tenant: int, bank: int) -> tuple[int, bool]:
    """Delete a page of memories under profiles that a bank no longer has, as a worker: how many,
    and whether there may be more.

    Those of a bank that was switched a moment ago stay a while for answers that are under way.
    """
    rows = _run_alone(connection, tenant, bank, _FORMER)
    return rows, rows == _PAGE


def _run_alone(connection: Connection, tenant: int, bank: int, statement: TextClause) -> int:
    """A change back to a former profile waits until this is done, and sees what is gone."""
    values = {"tenant": tenant, "bank": bank, "page": _PAGE, "grace": _GRACE_SECONDS}
    hold(connection, tenant, [bank])
    return connection.execute(statement, values).rowcount


_BANKS = text("SELECT id FROM bank WHERE tenant_id = :tenant ORDER BY id")
_TIDY = text("SELECT bank_tidy(:tenant, :bank)")
_FORMER = text(
    """
    WITH former AS (
        SELECT p.id FROM encoder_profile p JOIN bank b ON b.tenant_id = :tenant AND b.id = :bank
        WHERE p.tenant_id = :tenant AND p.id <> b.profile_id
            AND p.id IS DISTINCT FROM b.next_profile_id
            AND (b.switched_at IS NULL OR b.switched_at < now() - make_interval(secs => :grace))
    ), page AS (
        SELECT k.chunk_id, k.profile_id FROM former f JOIN memory_key k
            ON k.tenant_id = :tenant AND k.bank_id = :bank AND k.profile_id = f.id
        LIMIT :page FOR UPDATE OF k SKIP LOCKED
    )
    DELETE FROM memory_key k USING page p
    WHERE k.tenant_id = :tenant AND k.chunk_id = p.chunk_id AND k.profile_id = p.profile_id
    """
)
