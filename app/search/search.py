"""Searches a bank under the asking principal's rights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from app.bank.filters import Filter, comparisons
from app.db.session import Asker, transaction
from app.errors import FilterError
from app.search.nearest import Nearest
from app.search.rank import POOL, best


@dataclass(frozen=True)
class Passage:
    """A memory that was found.

    `score` is the cosine of question and key, -1 to 1. `relevance` (rank.py) orders passages, and
    decides how strongly a reader prefers one. `heading` holds the headings above the passage in its
    document, `start` and `end` its place in the document's text, in characters. `file_id` is the
    uploaded file that it comes from, if any.
    """

    id: int
    document_id: str
    title: str
    source: str
    text: str
    score: float
    relevance: float
    heading: str = ""
    start: int = 0
    end: int = 0
    file_id: str | None = None


def search(
    asker: Asker,
    bank: int,
    profile: str,
    vector: Sequence[float],
    k: int,
    words: str = "",
    least: float = -1.0,
    where: Filter | None = None,
) -> list[Passage]:
    """Return the k best memories of a bank that `asker` may read, best first; each text once.

    `words` is the question, which ranks passages along with its vector; without it the nearest
    come first. Passages with a cosine below `least` are left out, as are those whose document's
    metadata do not match `where`. Returns k passages whenever that many qualify. Raises
    FilterError when `where` names a field that no document readable by `asker` has.
    """
    nearest = Nearest(asker, bank, profile, vector, where)
    size = max(k, POOL)
    with transaction(asker) as connection:
        if where is not None:
            _require_fields(connection, asker, bank, where)
        while True:
            rows = nearest.read(connection, size)
            near = [row for row in rows if 1.0 - row.distance >= least]
            texts, cosines = [row.text for row in near], [1.0 - row.distance for row in near]
            chosen = best(words, texts, cosines, k)
            # Copies of one text may fill the pool, so further texts may lie beyond it.
            if len(chosen) == k or len(near) < size:
                return [_passage(near[one.index], one.relevance) for one in chosen]
            size *= 4


def _passage(r: Row[Any], relevance: float) -> Passage:
    of = (r.chunk_id, r.document_id, r.title, r.source, r.text, 1.0 - r.distance, relevance)
    return Passage(*of, r.heading, r.start_at, r.end_at, r.file_id)


_HAS_FIELD = text(
    "SELECT EXISTS (SELECT FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank"
    " AND jsonb_exists(d.metadata, :key))"
)
_FIELDS = text(
    "SELECT DISTINCT key FROM (SELECT metadata FROM document d WHERE d.tenant_id = :tenant"
    " AND d.bank_id = :bank AND jsonb_typeof(metadata) = 'object' LIMIT 1000) d,"
    " jsonb_object_keys(d.metadata) key ORDER BY key LIMIT 20"
)


def _require_fields(connection: Connection, asker: Asker, bank: int, where: Filter) -> None:
    values = {"tenant": asker.tenant, "bank": bank}
    for key in dict.fromkeys(each.key for each in comparisons(where)):
        if not connection.execute(_HAS_FIELD, values | {"key": key}).scalar():
            known = ", ".join(map(repr, connection.execute(_FIELDS, values).scalars()))
            raise FilterError(
                f"no document that you may read has the metadata field {key!r}:"
                f" correct the filter; known fields: {known or 'none'}"
            )
