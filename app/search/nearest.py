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
from app.db.sql import statements
from app.search.indexes import index_name

Way = Literal["all", "index", "documents"]

_SCANNED = 60
"""Keys that an index may scan per row wanted: beyond that, going through documents is cheaper."""
_REMEMBERED = 60.0
"""Seconds before an index is tried again for an asker to whom it returned too few rows."""

_SQL = statements(__file__)
_OF_ALL = _SQL["of_all"]
_BY_DOCUMENTS = _SQL["by_documents"]
_WITH_TEXTS = _SQL["with_texts"]

_READY = text(_SQL["ready"])
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
        return text(f"{ways.format(**parts)}\n{_WITH_TEXTS}"), values

    def _run(self, connection: Connection, way: Way, size: int) -> Sequence[Row[Any]]:
        return connection.execute(*self.statement(way, size)).all()


def _remember(who: tuple[object, ...]) -> None:
    _short[who] = time.monotonic()
    _short.move_to_end(who)
    if len(_short) > 10_000:
        _short.popitem(last=False)
