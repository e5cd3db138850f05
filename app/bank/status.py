"""How far the work is: for people, and for those who wait."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import text

from app.bank.session import Asker, transaction


def queue() -> dict[str, int]:
    """Rows of the outbox and of dead_letter, over all tenants."""
    with transaction(Asker("admin")) as connection:
        row = connection.execute(
            text(
                "SELECT count(*) FILTER (WHERE lease_until IS NULL OR lease_until < now()),"
                " count(*) FILTER (WHERE lease_until >= now()),"
                " (SELECT count(*) FROM dead_letter WHERE NOT discarded) FROM outbox"
            )
        ).one()
    return {"pending": row[0], "encoding": row[1], "failed": row[2]}


def banks() -> list[dict[str, object]]:
    """One row per bank, as the view bank_status has it; staleness in seconds."""
    with transaction(Asker("admin")) as connection:
        rows = connection.execute(text("SELECT * FROM bank_status ORDER BY tenant, bank"))
        return [dict(row) | {"staleness": _seconds(row["staleness"])} for row in rows.mappings()]


def progress(tenant: int, bank: int, documents: Sequence[str]) -> dict[str, int]:
    """Chunks and memories of some documents, and how many of them still wait or have failed."""
    with transaction(Asker("worker", tenant)) as connection:
        row = connection.execute(
            text(
                "SELECT (SELECT count(*) FROM chunk WHERE tenant_id = :tenant AND bank_id = :bank"
                " AND document_id = ANY(:ids)) AS chunks,"
                " (SELECT count(*) FROM memory_key WHERE tenant_id = :tenant AND bank_id = :bank"
                " AND document_id = ANY(:ids)) AS memories,"
                " (SELECT count(*) FROM outbox WHERE tenant_id = :tenant AND bank_id = :bank"
                " AND document_id = ANY(:ids)) AS pending,"
                " (SELECT count(*) FROM dead_letter WHERE tenant_id = :tenant"
                " AND bank_id = :bank AND document_id = ANY(:ids)) AS failed"
            ),
            {"tenant": tenant, "bank": bank, "ids": list(documents)},
        ).one()
    return dict(row._mapping)


def failures(tenant: int, bank: int, documents: Sequence[str]) -> list[tuple[str, str]]:
    """Source and error of what failed for good."""
    with transaction(Asker("worker", tenant)) as connection:
        rows = connection.execute(
            text(
                "SELECT d.source, l.error FROM dead_letter l"
                " JOIN document d ON d.tenant_id = l.tenant_id AND d.bank_id = l.bank_id"
                " AND d.id = l.document_id WHERE l.tenant_id = :tenant AND l.bank_id = :bank"
                " AND l.document_id = ANY(:ids) ORDER BY l.id"
            ),
            {"tenant": tenant, "bank": bank, "ids": list(documents)},
        )
        return [(row.source, row.error) for row in rows]


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else round(age.total_seconds(), 1)
