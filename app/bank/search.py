"""Search by key, under the asking principal's rights, and the blobs of what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgvector import HalfVector
from sqlalchemy import text

from app.bank.session import Asker, driver_of, transaction


@dataclass(frozen=True)
class Passage:
    """A memory that was found. `score` is the cosine of question and key, -1 to 1."""

    id: int
    document_id: str
    title: str
    source: str
    text: str
    score: float


@dataclass(frozen=True)
class Query:
    """What is searched for, and how many of it.

    vector: its key; words: its text, with which passages are ordered beside the key, none for the
    order of the keys alone; least: cosine below which a passage does not count; where: what the
    metadata of its document must be.
    """

    vector: Sequence[float]
    k: int
    words: str = ""
    least: float = -1.0
    where: Filter | None = None


def search(asker: Asker, bank: int, profile: str, query: Query) -> list[Passage]:
    """The k best memories of a bank that `asker` may read, best first; the same text once.

    k come back wherever there are k. Raises UsageError for a filter on a field that no document
    has which the asker may read.
    """
    values = {"tenant": asker.tenant, "bank": bank, "profile": profile}
    nearest = _Nearest(values, (asker.principal,), query)
    with transaction(asker) as connection:
        if query.where is not None:
            _require_fields(connection, values, query.where)
        size = max(query.k, POOL if query.words else 0)
        while True:
            pool = nearest.read(connection, size)
            near = [p for p in pool if p.score >= query.least]
            texts, cosines = [p.text for p in near], [p.score for p in near]
            chosen = best(query.words, texts, cosines, query.k)
            # Copies of one text may fill the pool, and passages behind it be the rest of the k.
            if len(chosen) == query.k or len(near) < size:
                return [near[i] for i in chosen]
            size *= 4


# Whether an index of the bank's keys is there to be used (app/bank/indexes.py).
_INDEX = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
_FROM_INDEX = text(
    "SELECT set_config('hnsw.iterative_scan', 'strict_order', true),"
    " set_config('hnsw.ef_search', :list, true), set_config('hnsw.max_scan_tuples', :most, true),"
    " set_config('membank.each_alone', :alone, true)"
)
_LIST = 100
_MOST_SCANNED = 2000
"""Keys that the index may bring before it is left: where it takes more, a search document by
document costs less."""
_REMEMBERED = 60.0
"""Seconds. For so long it is not asked again for someone who may read too few of them."""


class _Nearest:
    """The readable keys nearest to a question, in the way that is quickest for who asks.

    All keys of a bank are compared where they are few. Of a large bank an index brings the nearest,
    until enough of them may be read; where too few may, the documents are gone through that may.
    The first and the last are exact, and all give whatever there is.
    """

    _short: OrderedDict[tuple[object, ...], float] = OrderedDict()

    def __init__(self, values: dict[str, Any], who: tuple[object, ...], query: Query) -> None:
        dimensions = len(query.vector)
        self._values = values | {"vector": HalfVector(list(query.vector)).to_text()}
        fits = "true" if query.where is None else sql(query.where, self._values)
        self._texts = {
            form: text(statement.format(fits=fits, dimensions=dimensions))
            for form, statement in _STATEMENTS.items()
        }
        self._key = (*values.values(), *who, query.where)

    def read(self, connection: Connection, size: int) -> list[Passage]:
        """The `size` nearest, nearest first."""
        values = self._values
        name = index_name(values["tenant"], values["bank"], values["profile"])
        if not connection.execute(_INDEX, {"name": name}).scalar():
            return self._run(connection, "all", size)
        if time.monotonic() - self._short.get(self._key, -math.inf) > _REMEMBERED:
            many = max(_LIST, min(size, 1000))  # the most that it takes
            limits = {"list": str(many), "most": str(max(_MOST_SCANNED, 2 * size))}
            connection.execute(_FROM_INDEX, limits | {"alone": "on"})
            found = self._run(connection, "index", size)
            if len(found) == size:
                return found
            self._short[self._key] = time.monotonic()
            self._short.move_to_end(self._key)
            if len(self._short) > 10_000:
                self._short.popitem(last=False)
            connection.execute(_FROM_INDEX, limits | {"alone": "off"})
        return self._run(connection, "documents", size)

    def _run(self, connection: Connection, form: str, size: int) -> list[Passage]:
        rows = connection.execute(self._texts[form], self._values | {"size": size}).all()
        return [
            Passage(r.chunk_id, r.document_id, r.title, r.source, r.text, 1.0 - r.distance)
            for r in rows
        ]


# Rights (by policy), staleness and filter are settled before LIMIT, so as many rows come back as
# may be read. Documents are joined after it: joined before, the planner expects to find one of them
# and reads all keys again for each (250 ms instead of 10 for 3,853 keys).
_WITH_TEXTS = """
    SELECT n.chunk_id, n.document_id, n.distance, d.title, d.source, c.text
    FROM near n
    JOIN document d ON d.tenant_id = :tenant AND d.bank_id = :bank AND d.id = n.document_id
    JOIN chunk c ON c.tenant_id = :tenant AND c.id = n.chunk_id
    ORDER BY n.distance, n.chunk_id
    """
_OF_ALL = """
    WITH near AS MATERIALIZED (
        SELECT k.chunk_id, k.document_id, {distance} AS distance
        FROM memory_key k
        WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.profile_id = :profile
            AND k.document_id NOT IN (  -- hashed, however many there are
                SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
                    AND {unfit})
        ORDER BY {order} LIMIT :size)
    """
_UNFIT = "(d.revision <> d.split_revision OR d.text_hash <> d.content_hash)"
_COSINE = "k.embedding <=> cast(:vector AS halfvec)"
_OF_DOCUMENTS = """
    WITH fit AS MATERIALIZED (
        SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
            AND d.revision = d.split_revision AND d.text_hash = d.content_hash AND {fits}),
    near AS MATERIALIZED (
        SELECT k.chunk_id, k.document_id, k.distance
        FROM fit CROSS JOIN LATERAL (
            SELECT k.chunk_id, k.document_id, {cosine} AS distance FROM memory_key k
            WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.document_id = fit.id
                AND k.profile_id = :profile OFFSET 0) k
        ORDER BY k.distance, k.chunk_id LIMIT :size)
    """


_READABLE = text(
    """
    SELECT k.chunk_id
    FROM memory_key k
    JOIN document d ON d.tenant_id = :tenant AND d.bank_id = k.bank_id AND d.id = k.document_id
    WHERE k.tenant_id = :tenant AND k.profile_id = :profile AND k.chunk_id = ANY(:chunks)
        AND d.revision = d.split_revision AND d.text_hash = d.content_hash
    """
)


def readable(asker: Asker, profile: str, chunks: Sequence[int]) -> set[int]:
    """Those memories, by chunk id, that a search could still bring `asker`: neither forbidden
    meanwhile, nor forgotten, nor of a text that has changed."""
    values = {"tenant": asker.tenant, "profile": profile, "chunks": list(chunks)}
    with transaction(asker) as connection:
        return set(connection.execute(_READABLE, values).scalars())


def load_blobs(asker: Asker, profile: str, chunks: Sequence[int]) -> dict[int, bytes]:
    """Packed memories by chunk id, of those that `asker` may read."""
    # Results as text would be hex, five times slower to receive.
    with transaction(asker) as connection, driver_of(connection).cursor(binary=True) as cursor:
        cursor.execute(
            "SELECT chunk_id, payload FROM memory_blob"
            " WHERE tenant_id = %s AND profile_id = %s AND chunk_id = ANY(%s)",
            (asker.tenant, profile, list(chunks)),
        )
        return dict(cursor.fetchall())
