"""Finds the readable keys nearest to a question, in whichever way is fastest for the asker.

In a small bank, all keys are compared. In a large one, an index returns the nearest keys until
enough of them are readable; if that takes too many, the readable documents are gone through
instead. The first and the last way are exact. A search always returns as many rows as are wanted,
if that many are readable.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgvector import HalfVector
from sqlalchemy import Connection, Row, TextClause, text

from app.bank import filters
from app.db.session import Asker
from app.search.indexes import index_name

Way = Literal["all", "index", "documents"]

_SCANNED = 60
"""Keys that an index may scan per row wanted: beyond that, going through documents is cheaper."""
_REMEMBERED = 60.0
"""Seconds before an index is tried again for an asker to whom it returned too few rows."""

# Rights (by policy), staleness and filter are settled before LIMIT, so as many rows come back as
# may be read. Documents are joined after it: joined before, the planner expects to find one of them
# and reads all keys again for each (250 ms instead of 10 for 3,853 keys). For the same reason texts
# are looked up one by one: joined, all documents were gone through for each (40 ms for 12,500).
_OF_ALL = """
    WITH near AS MATERIALIZED (
        SELECT k.chunk_id, k.document_id, {distance} AS distance
        FROM memory_key k
        WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.profile_id = :profile
            AND k.document_id NOT IN (  -- hashed, however many there are
                SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
                    AND (d.revision <> d.split_revision OR d.text_hash <> d.content_hash{unfit}))
        ORDER BY {order} LIMIT :size)
    """
_BY_DOCUMENTS = """
    WITH fit AS MATERIALIZED (
        SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
            AND d.revision = d.split_revision AND d.text_hash = d.content_hash{fit}),
    near AS MATERIALIZED (
        SELECT k.chunk_id, k.document_id, k.distance
        FROM fit CROSS JOIN LATERAL (  -- OFFSET keeps the planner from turning it round
            SELECT k.chunk_id, k.document_id, {distance} AS distance FROM memory_key k
            WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.document_id = fit.id
                AND k.profile_id = :profile OFFSET 0) k
        ORDER BY {order} LIMIT :size)
    """
_WITH_TEXTS = """
    SELECT n.chunk_id, n.document_id, n.distance, d.title, d.source, c.text,
        c.heading, c.start_at, c.end_at, d.file_id
    FROM near n
    CROSS JOIN LATERAL (SELECT title, source, file_id FROM document WHERE tenant_id = :tenant
        AND bank_id = :bank AND id = n.document_id LIMIT 1) d
    CROSS JOIN LATERAL (SELECT text, heading, start_at, end_at FROM chunk
        WHERE tenant_id = :tenant AND id = n.chunk_id LIMIT 1) c
    ORDER BY n.distance + 0, n.chunk_id  -- the index's own order is a rough one
    """

# Of a tenant's documents hardly any is not served, but the planner takes all to be so, and would
# rather read every one than ask the index of those. Where all keys of a bank are compared, rights
# are hashed once (each_alone() in migrations/schema). What an index brings later may be nearer than
# what it brought before, and strict_order would drop it.
_READY = text(
    "SELECT usable, set_config('enable_seqscan', 'off', true),"
    " set_config('membank.searched', :bank, true),"
    " set_config('membank.each_alone', CASE WHEN usable THEN 'on' ELSE 'off' END, true),"
    " set_config('hnsw.iterative_scan', 'relaxed_order', true),"
    " set_config('hnsw.ef_search', :list, true), set_config('hnsw.max_scan_tuples', :most, true)"
    " FROM (SELECT coalesce((SELECT i.indisvalid FROM pg_class c"
    " JOIN pg_index i ON i.indexrelid = c.oid WHERE c.relname = :name"
    " AND c.relnamespace = 'public'::regnamespace), false) AS usable) u"
)
_TOGETHER = text("SELECT set_config('membank.each_alone', 'off', true)")

_short: OrderedDict[tuple[object, ...], float] = OrderedDict()


@dataclass(frozen=True)
class Nearest:
    """A search of one bank's keys under one profile, with the rights of `asker`.

    `where` limits it to documents whose metadata match; None means all.
    """

    asker: Asker
    bank: int
    profile: str
    vector: Sequence[float]
    where: filters.Filter | None = None

    def read(self, connection: Connection, size: int) -> Sequence[Row[Any]]:
        """Return the `size` nearest rows, in order: chunk_id, document_id, distance, title, source,
        text, heading, start_at, end_at and file_id."""
        if not self.ready(connection, size):
            return self._run(connection, "all", size)
        who = (self.asker, self.bank, self.profile, self.where)
        if time.monotonic() - _short.get(who, -math.inf) > _REMEMBERED:
            found = self._run(connection, "index", size)
            if len(found) == size:
                return found
            _remember(who)
        connection.execute(_TOGETHER)
        return self._run(connection, "documents", size)

    def ready(self, connection: Connection, size: int) -> bool:
        """Configure the transaction for a search; return whether a valid index exists."""
        values = {
            "name": index_name(self.asker.tenant or 0, self.bank, self.profile),
            "bank": str(self.bank),
            "list": str(min(size, 1000)),
            "most": str(_SCANNED * size),
        }
        return bool(connection.execute(_READY, values).one().usable)

    def statement(self, way: Way, size: int) -> tuple[TextClause, dict[str, Any]]:
        """Return the SQL of a way of searching, and its parameters."""
        values: dict[str, Any] = {
            "tenant": self.asker.tenant,
            "bank": self.bank,
            "profile": self.profile,
            "vector": HalfVector(list(self.vector)).to_text(),
            "size": size,
        }
        fits = None if self.where is None else filters.sql(self.where, values)
        # An index covers keys of one length, and is used only by a query that casts to that length.
        kind = f"halfvec({len(self.vector)})" if way == "index" else "halfvec"
        parts = {
            "distance": f"cast(k.embedding AS {kind}) <=> cast(:vector AS {kind})",
            "order": "distance" if way == "index" else "distance, k.chunk_id",
            "fit": "" if fits is None else f" AND {fits}",
            "unfit": "" if fits is None else f" OR {fits} IS NOT TRUE",
        }
        ways = _BY_DOCUMENTS if way == "documents" else _OF_ALL
        return text(ways.format(**parts) + _WITH_TEXTS), values

    def _run(self, connection: Connection, way: Way, size: int) -> Sequence[Row[Any]]:
        return connection.execute(*self.statement(way, size)).all()


def _remember(who: tuple[object, ...]) -> None:
    _short[who] = time.monotonic()
    _short.move_to_end(who)
    if len(_short) > 10_000:
        _short.popitem(last=False)
