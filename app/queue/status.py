"""How far the work is: for people, and for those who wait."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, text

from app.db.session import Asker
from app.errors import NotFoundError


def queue(connection: Connection) -> dict[str, int]:
    """Rows of the outbox and of dead_letter, over all tenants; for an administrator to see."""
    row = connection.execute(
        text(
            "SELECT count(*) FILTER (WHERE lease_until IS NULL OR lease_until < now()),"
            " count(*) FILTER (WHERE lease_until >= now()),"
            " (SELECT count(*) FROM dead_letter WHERE NOT discarded) FROM outbox"
        )
    ).one()
    return {"pending": row[0], "encoding": row[1], "failed": row[2]}


def backlog(connection: Connection, profile: str) -> dict[str, float]:
    """Of one profile's work over all tenants: rows of the outbox that are due, rows that workers
    hold, and the age in seconds of the oldest that is due. Paused tenants' work is not due. A
    worker's to see, without a tenant."""
    row = connection.execute(_BACKLOG, {"profile": profile}).one()
    return {"pending": row[0], "encoding": row[1], "oldest_seconds": round(float(row[2] or 0), 1)}


_BACKLOG = text(
    """
    SELECT count(*) FILTER (WHERE due), count(*) FILTER (WHERE lease_until >= now()),
           extract(epoch FROM now() - min(greatest(created_at, not_before)) FILTER (WHERE due))
    FROM (SELECT created_at, not_before, lease_until,
              not_before <= now() AND (lease_until IS NULL OR lease_until < now())
                  AND tenant_id NOT IN (SELECT paused_tenants()) AS due
          FROM outbox WHERE profile_id = :profile) work
    """
)


def banks(connection: Connection, tenant: int | None = None) -> list[dict[str, object]]:
    """One row per bank, of one tenant or of all, as the view bank_status has it; ages and times in
    seconds.

    `next_changes`: what the next profile has other than the present one, field -> [present, next].
    """
    found = connection.execute(_BANKS, {"tenant": tenant}).mappings()
    rows = [dict(row) for row in found]
    for row in rows:
        for name in ("staleness", "staleness_next", "time_left"):
            row[name] = _seconds(row[name])
        present, future = row.pop("spec"), row.pop("next_spec") or {}
        row["next_changes"] = {
            field: [present.get(field), value]
            for field, value in future.items()
            if present.get(field) != value
        }
    return rows


def of_bank(connection: Connection, asker: Asker, bank: int) -> dict[str, float | int | None]:
    """How far a bank is, of what `asker` may read: pending, encoding, ready, failed (units of
    work), coverage 0 to 1, throughput (memories a second), time_left (seconds).

    Raises NotFoundError.
    """
    row = connection.execute(_BANK, {"tenant": asker.tenant, "bank": bank}).one_or_none()
    if row is None:
        raise NotFoundError("the bank is not there any more: list the banks that there are")
    return {
        "pending": row.pending - row.held,
        "encoding": row.held,
        "ready": row.memories,
        "failed": row.failed,
        "coverage": row.coverage,
        "throughput": row.throughput,
        "time_left": _seconds(row.time_left),
    }


_BANK = text(
    "SELECT s.pending, s.memories, s.failed, s.coverage, s.throughput, s.time_left,"
    " (SELECT count(*) FROM outbox o WHERE o.tenant_id = s.tenant_id AND o.bank_id = s.bank_id"
    " AND o.lease_until > now() AND (o.chunk_id IS NULL OR o.profile_id = s.profile_id)) AS held"
    " FROM bank_status s WHERE s.tenant_id = :tenant AND s.bank_id = :bank"
)
_BANKS = text(
    "SELECT s.*, p.spec, n.spec AS next_spec FROM bank_status s"
    " JOIN encoder_profile p ON p.tenant_id = s.tenant_id AND p.id = s.profile_id"
    " LEFT JOIN encoder_profile n ON n.tenant_id = s.tenant_id AND n.id = s.next_profile_id"
    " WHERE s.tenant_id = coalesce(cast(:tenant AS bigint), s.tenant_id)"
    " ORDER BY s.tenant, s.bank"
)


def progress(
    connection: Connection, tenant: int, bank: int, documents: Sequence[str]
) -> dict[str, int]:
    """Chunks and memories of some documents, and how many of them still wait or have failed.

    Under the bank's profile, which is what is read.
    """
    row = connection.execute(
        _PROGRESS, {"tenant": tenant, "bank": bank, "ids": list(documents)}
    ).one()
    return dict(row._mapping)


_PROGRESS = text(
    """
    SELECT (SELECT count(*) FROM chunk WHERE tenant_id = :tenant AND bank_id = :bank
                AND document_id = ANY(:ids)) AS chunks,
           (SELECT count(*) FROM memory_key WHERE tenant_id = :tenant AND bank_id = :bank
                AND document_id = ANY(:ids) AND profile_id = b.profile_id) AS memories,
           (SELECT count(*) FROM outbox WHERE tenant_id = :tenant AND bank_id = :bank
                AND document_id = ANY(:ids)
                AND (chunk_id IS NULL OR profile_id = b.profile_id)) AS pending,
           (SELECT count(*) FROM dead_letter WHERE tenant_id = :tenant AND bank_id = :bank
                AND document_id = ANY(:ids)
                AND (chunk_id IS NULL OR profile_id = b.profile_id)) AS failed
    FROM bank b WHERE b.tenant_id = :tenant AND b.id = :bank
    """
)


def failures(
    connection: Connection, tenant: int, bank: int, documents: Sequence[str]
) -> list[tuple[str, str]]:
    """Source and error of what failed for good."""
    rows = connection.execute(
        text(
            "SELECT d.source, l.error FROM dead_letter l"
            " JOIN document d ON d.tenant_id = l.tenant_id AND d.bank_id = l.bank_id"
            " AND d.id = l.document_id"
            " JOIN bank b ON b.tenant_id = l.tenant_id AND b.id = l.bank_id"
            " WHERE l.tenant_id = :tenant AND l.bank_id = :bank AND l.document_id = ANY(:ids)"
            " AND (l.chunk_id IS NULL OR l.profile_id = b.profile_id) ORDER BY l.id"
        ),
        {"tenant": tenant, "bank": bank, "ids": list(documents)},
    )
    return [(row.source, row.error) for row in rows]


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else round(age.total_seconds(), 1)
