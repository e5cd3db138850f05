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
from app.db.sql import statements
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
        _former(tenant, found, stop)
        tenant = next_tenant(tenant)
    return Found(**{f.name: found[f.name] for f in fields(Found)})


_SQL = statements(__file__)
_WAITING_FILES = text(_SQL["waiting_files"])
_FILES_DONE = text(
    "DELETE FROM outbox o WHERE o.tenant_id = :tenant AND o.file_id IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM bank_file f WHERE f.tenant_id = :tenant"
    " AND f.bank_id = o.bank_id AND f.file_id = o.file_id AND f.state = 'storing')"
)


def _files(tenant: int, found: Counter[str]) -> None:
    found["queued_files"] += _until_short(tenant, _WAITING_FILES)
    found["orphans"] += _run(tenant, _FILES_DONE)


_CHANGED = text(_SQL["changed"])
_BEHIND = text(_SQL["behind"])
_OUTLIVED = text(_SQL["outlived"])


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
_WITHOUT_MEMORY = text(_SQL["without_memory"])
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


def _former(tenant: int, found: Counter[str], stop: threading.Event | None) -> None:
    """Memories and work of profiles that banks no longer have."""
    with transaction(Asker("worker", tenant)) as connection:
        banks = profiles.banks(connection, tenant)
    for bank in banks:
        with transaction(Asker("worker", tenant)) as connection:
            profiles.tidy(connection, tenant, bank)
        more = True
        while more and not (stop and stop.is_set()):
            with transaction(Asker("worker", tenant)) as connection:
                rows, more = profiles.remove_former(connection, tenant, bank)
            found["former_memories"] += rows


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
