"""Finds and repairs what triggers missed: texts changed, or rows deleted, while they were off.

Triggers are off during a restore, on a subscriber of logical replication, with
session_replication_role = replica, and after DISABLE TRIGGER. The generated column text_hash is
always kept, so it shows which texts have changed.

Each page of documents or chunks is a separate transaction. It locks only the documents that it
repairs, and skips those that others have locked until the next run.
"""

import threading
from collections import Counter
from dataclasses import dataclass, fields

from sqlalchemy import TextClause, text

from app.bank import profiles
from app.db.session import Asker, transaction
from app.db.tenants import next_tenant

_PAGE = 1000
_LAST = 2**63 - 1


@dataclass(frozen=True)
class Found:
    """Counts of what was repaired: changed texts, work that was not queued, orphans removed.

    former_memories were removed because their bank has been switched to another profile.
    """

    tenants: int
    changed_documents: int
    queued_documents: int
    queued_chunks: int
    orphans: int
    former_memories: int = 0
    queued_files: int = 0

    @property
    def any(self) -> bool:
        """Whether triggers had missed anything."""
        silent = ("tenants", "former_memories")
        return any(getattr(self, f.name) for f in fields(self) if f.name not in silent)


def reconcile(stop: threading.Event | None = None) -> Found:
    """Go through all tenants once, as a worker, until done or `stop` is set.

    Raises UnavailableError.
    """
    found: Counter[str] = Counter()
    tenant = next_tenant(0)
    while tenant is not None and not (stop and stop.is_set()):
        found["tenants"] += 1
        _files(tenant, found)
        _documents(tenant, found)
        _chunks(tenant, found, stop)
        found["former_memories"] += profiles.remove_former(tenant, stop)
        tenant = next_tenant(tenant)
    return Found(**{f.name: found[f.name] for f in fields(Found)})


_WAITING_FILES = text(
    """
    WITH waiting AS (
        SELECT f.bank_id, f.file_id FROM bank_file f
        WHERE f.tenant_id = :tenant AND f.state = 'storing'
            AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant
                AND o.bank_id = f.bank_id AND o.file_id = f.file_id)
        LIMIT :page FOR NO KEY UPDATE OF f SKIP LOCKED)
    INSERT INTO outbox (tenant_id, bank_id, file_id, profile_id, revision, priority)
    SELECT :tenant, f.bank_id, f.file_id, b.profile_id, 0, -1
    FROM waiting f JOIN bank b ON b.tenant_id = :tenant AND b.id = f.bank_id
    ON CONFLICT DO NOTHING
    """
)
_FILES_DONE = text(
    "DELETE FROM outbox o WHERE o.tenant_id = :tenant AND o.file_id IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM bank_file f WHERE f.tenant_id = :tenant"
    " AND f.bank_id = o.bank_id AND f.file_id = o.file_id AND f.state = 'storing')"
)


def _files(tenant: int, found: Counter[str]) -> None:
    found["queued_files"] += _until_short(tenant, _WAITING_FILES)
    found["orphans"] += _run(tenant, _FILES_DONE)


# With the trigger on, it sets both columns to the same; with it off, this statement does.
_CHANGED = text(
    """
    WITH unnoticed AS (
        SELECT bank_id, id FROM document WHERE tenant_id = :tenant AND text_hash <> content_hash
        LIMIT :page FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE document d SET content_hash = d.text_hash, revision = d.revision + 1
    FROM unnoticed u WHERE d.tenant_id = :tenant AND d.bank_id = u.bank_id AND d.id = u.id
    """
)
_BEHIND = text(
    """
    WITH behind AS (
        SELECT d.bank_id, d.id, d.revision FROM document d
        WHERE d.tenant_id = :tenant AND d.revision <> d.split_revision
            AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant
                AND o.bank_id = d.bank_id AND o.document_id = d.id AND o.chunk_id IS NULL)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = :tenant
                AND l.bank_id = d.bank_id AND l.document_id = d.id AND l.chunk_id IS NULL)
        LIMIT :page FOR NO KEY UPDATE OF d SKIP LOCKED)
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)
    SELECT :tenant, d.bank_id, d.id, NULL, b.profile_id, d.revision
    FROM behind d JOIN bank b ON b.tenant_id = :tenant AND b.id = d.bank_id
    ON CONFLICT DO NOTHING
    """
)
# Failures of a text that is no longer there. A trigger does it too, where it is on.
_OUTLIVED = text(
    """
    DELETE FROM dead_letter l USING document d
    WHERE l.tenant_id = :tenant AND l.chunk_id IS NULL AND d.tenant_id = :tenant
        AND d.bank_id = l.bank_id AND d.id = l.document_id AND d.text_hash <> d.content_hash
    """
)


def _documents(tenant: int, found: Counter[str]) -> None:
    _run(tenant, _OUTLIVED)
    found["changed_documents"] += _until_short(tenant, _CHANGED)
    found["queued_documents"] += _until_short(tenant, _BEHIND)
    for table in ("outbox", "dead_letter"):
        found["orphans"] += _run(tenant, text(_ORPHANS.format(table=table)))


_ORPHANS = (
    "DELETE FROM {table} o WHERE o.tenant_id = :tenant AND o.document_id IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM document d WHERE d.tenant_id = :tenant"
    " AND d.bank_id = o.bank_id AND d.id = o.document_id)"
)
_UPTO = text(
    "SELECT max(id) FROM (SELECT id FROM chunk WHERE tenant_id = :tenant AND id > :after"
    " ORDER BY id LIMIT :page) c HAVING count(*) = :page"
)
_WITHOUT_MEMORY = text(
    """
    WITH lost AS (
        SELECT d.bank_id, d.id AS document_id, c.id, p.id AS profile_id, p.priority
        FROM chunk c JOIN bank b ON b.tenant_id = :tenant AND b.id = c.bank_id
        JOIN document d ON d.tenant_id = :tenant AND d.bank_id = c.bank_id AND d.id = c.document_id
        CROSS JOIN LATERAL (VALUES (b.profile_id, 0), (b.next_profile_id, -1)) p (id, priority)
        WHERE c.tenant_id = :tenant AND c.id > :after AND c.id <= :upto AND p.id IS NOT NULL
            AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = :tenant
                AND m.chunk_id = c.id AND m.profile_id = p.id)
            AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant AND o.chunk_id = c.id
                AND o.profile_id = p.id)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = :tenant
                AND l.chunk_id = c.id AND l.profile_id = p.id)
        ORDER BY c.id  -- as bank_fill does, or both could wait for each other
        FOR NO KEY UPDATE OF d SKIP LOCKED FOR KEY SHARE OF c SKIP LOCKED)
    INSERT INTO outbox
        (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT :tenant, bank_id, document_id, id, profile_id, 0, priority FROM lost
    ON CONFLICT DO NOTHING
    """
)
# Each table by itself: what cascades is not counted, and what did not cascade is gone at last.
_ORPHANS_OF_PAGE = (
    "DELETE FROM chunk c WHERE c.tenant_id = :tenant AND c.id > :after AND c.id <= :upto"
    " AND NOT EXISTS (SELECT FROM document d WHERE d.tenant_id = :tenant"
    " AND d.bank_id = c.bank_id AND d.id = c.document_id)",
    *(
        f"DELETE FROM {table} o WHERE o.tenant_id = :tenant AND o.chunk_id > :after"  # noqa: S608 (names of ours)
        " AND o.chunk_id <= :upto AND NOT EXISTS (SELECT FROM chunk c"
        " WHERE c.tenant_id = :tenant AND c.id = o.chunk_id)"
        for table in ("memory_key", "memory_blob", "outbox", "dead_letter")
    ),
    "DELETE FROM memory_blob m WHERE m.tenant_id = :tenant AND m.chunk_id > :after"
    " AND m.chunk_id <= :upto AND NOT EXISTS (SELECT FROM memory_key k"
    " WHERE k.tenant_id = :tenant AND k.chunk_id = m.chunk_id AND k.profile_id = m.profile_id)",
)


def _chunks(tenant: int, found: Counter[str], stop: threading.Event | None) -> None:
    """Repair chunks in contiguous ranges of ids, so that every orphan's id is in one of them."""
    after = 0
    while after < _LAST and not (stop and stop.is_set()):
        values = {"tenant": tenant, "after": after, "page": _PAGE}
        with transaction(Asker("worker", tenant)) as connection:
            values["upto"] = connection.execute(_UPTO, values).scalar() or _LAST
            found["orphans"] += sum(
                connection.execute(text(each), values).rowcount for each in _ORPHANS_OF_PAGE
            )
            found["queued_chunks"] += connection.execute(_WITHOUT_MEMORY, values).rowcount
        after = values["upto"]


def _until_short(tenant: int, statement: TextClause) -> int:
    """Run the statement until a page is not full; return the total number of rows."""
    total, rows = 0, _PAGE
    while rows == _PAGE:
        rows = _run(tenant, statement)
        total += rows
    return total


def _run(tenant: int, statement: TextClause) -> int:
    with transaction(Asker("worker", tenant)) as connection:
        return connection.execute(statement, {"tenant": tenant, "page": _PAGE}).rowcount
