"""Search by key, under the asking principal's rights, and the blobs of what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgvector import HalfVector
from sqlalchemy import text

from app.bank.keyring import KeyName
from app.bank.session import Asker, driver_of, transaction
from app.bank.vault import Place, unseal


@dataclass(frozen=True)
class Passage:
    """A memory that was found. `score` is the cosine of question and key, -1 to 1."""

    id: int
    document_id: str
    title: str
    source: str
    text: str
    score: float


# Rights (by policy) and staleness are settled before LIMIT, so k rows come back whenever k may be
# read. Documents are joined after it: joined before, the planner expects to find one of them and
# reads all keys again for each (250 ms instead of 10 for 3,853 keys).
_NEAREST = text(
    """
    WITH near AS MATERIALIZED (
        SELECT k.chunk_id, k.bank_id, k.document_id,
               k.embedding <=> cast(:vector AS halfvec) AS distance
        FROM memory_key k
        WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.profile_id = :profile
            AND k.document_id NOT IN (  -- hashed, however many there are
                SELECT d.id FROM document d
                WHERE d.tenant_id = :tenant AND d.bank_id = :bank
                    AND (d.revision <> d.split_revision OR d.text_hash <> d.content_hash))
        ORDER BY distance, k.chunk_id LIMIT :k
    )
    SELECT n.chunk_id, n.document_id, n.distance, d.title, d.source, c.text
    FROM near n
    JOIN document d ON d.tenant_id = :tenant AND d.bank_id = n.bank_id AND d.id = n.document_id
    JOIN chunk c ON c.tenant_id = :tenant AND c.id = n.chunk_id
    ORDER BY n.distance, n.chunk_id
    """
)


def search(asker: Asker, bank: int, profile: str, vector: Sequence[float], k: int) -> list[Passage]:
    """The k nearest memories of a bank that `asker` may read, nearest first. Exact."""
    with transaction(asker) as connection:
        rows = connection.execute(
            _NEAREST,
            {
                "tenant": asker.tenant,
                "bank": bank,
                "profile": profile,
                "vector": HalfVector(list(vector)).to_text(),
                "k": k,
            },
        ).all()
    return [
        Passage(r.chunk_id, r.document_id, r.title, r.source, r.text, 1.0 - r.distance)
        for r in rows
    ]


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


_BLOBS = (
    "SELECT b.chunk_id, b.payload, b.key_version, t.id FROM memory_blob b LEFT JOIN tenant_key t"
    " ON t.tenant_id = b.tenant_id AND t.version = b.key_version"
    " WHERE b.tenant_id = %s AND b.profile_id = %s AND b.chunk_id = ANY(%s)"
)


def load_blobs(asker: Asker, profile: str, chunks: Sequence[int]) -> dict[int, bytes]:
    """Packed memories by chunk id, of those that `asker` may read.

    Raises VaultError for one that is sealed and does not open.
    """
    # Results as text would be hex, five times slower to receive.
    with transaction(asker) as connection, driver_of(connection).cursor(binary=True) as cursor:
        rows = cursor.execute(_BLOBS, (asker.tenant, profile, list(chunks))).fetchall()
    return {
        chunk: payload
        if version is None
        else unseal(KeyName(asker.tenant or 0, version, key), Place(chunk, profile), payload)
        for chunk, payload, version, key in rows
    }
