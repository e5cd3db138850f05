"""What must hold when everything runs again and the queue is empty. Looks past every policy."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import redis
import torch
from psycopg import sql

from app.ingest.storing import pieces_of
from app.memory.codec.pack import unpack
from app.runtime.identity import count_tokens
from app.runtime.models import models

# As measured on whole runs: memories of int8 are within 1 % of a pass of the chunk alone.
_LEAST_LIKENESS = 0.99


def faults(url: str, words: Iterable[str], home: Path, valkey: str) -> list[str]:
    """Every promise that does not hold, as a line; none where all do.

    url: of a superuser; words: those of every text that was ever written; valkey: its URL.
    """
    with psycopg.connect(url) as connection:
        return [
            *_left_over(connection),
            *_chunks(connection),
            *_memories(connection),
            *_traces(connection, words, home, valkey),
        ]


_COUNTS = {
    "outbox rows": "SELECT count(*) FROM outbox",
    "dead letters": "SELECT count(*) FROM dead_letter",
    "files that are not stored": "SELECT count(*) FROM bank_file WHERE state <> 'stored'",
    "documents whose chunks are of another revision": "SELECT count(*) FROM document"
    " WHERE revision <> split_revision",
    "documents whose hash is not that of their text": "SELECT count(*) FROM document WHERE"
    " content_hash <> encode(sha256(convert_to(title || E'\\n' || text, 'UTF8')), 'hex')",
    "chunks without document": "SELECT count(*) FROM chunk c WHERE NOT EXISTS (SELECT FROM"
    " document d WHERE (d.tenant_id, d.bank_id, d.id) = (c.tenant_id, c.bank_id, c.document_id))",
    "chunks without exactly one key": "SELECT count(*) FROM chunk c WHERE 1 <> (SELECT count(*)"
    " FROM memory_key k WHERE k.tenant_id = c.tenant_id AND k.chunk_id = c.id)",
    "chunks without exactly one blob": "SELECT count(*) FROM chunk c WHERE 1 <> (SELECT count(*)"
    " FROM memory_blob b WHERE b.tenant_id = c.tenant_id AND b.chunk_id = c.id)",
    "keys without chunk": "SELECT count(*) FROM memory_key k WHERE NOT EXISTS (SELECT FROM"
    " chunk c WHERE c.tenant_id = k.tenant_id AND c.id = k.chunk_id)",
    "blobs without key": "SELECT count(*) FROM memory_blob b WHERE NOT EXISTS (SELECT FROM"
    " memory_key k WHERE (k.tenant_id, k.chunk_id, k.profile_id)"
    " = (b.tenant_id, b.chunk_id, b.profile_id))",
}


def _left_over(connection: psycopg.Connection[Any]) -> Iterator[str]:
    for what, statement in _COUNTS.items():
        (count,) = connection.execute(statement).fetchone() or (0,)
        if count:
            yield f"{count} {what}"


def _chunks(connection: psycopg.Connection[Any]) -> Iterator[str]:
    rows = connection.execute("SELECT tenant_id, bank_id, id, title, text FROM document").fetchall()
    for tenant, bank, document, title, body in rows:
        wanted = [piece.hash for piece in pieces_of(title, body, count_tokens)]
        found = connection.execute(
            "SELECT hash FROM chunk WHERE (tenant_id, bank_id, document_id) = (%s, %s, %s)"
            " ORDER BY ordinal",
            (tenant, bank, document),
        ).fetchall()
        if [row[0] for row in found] != wanted:
            yield f"the chunks of document {document} are not those of its text"


def _memories(connection: psycopg.Connection[Any]) -> Iterator[str]:
    rows = connection.execute(
        "SELECT c.id, c.text, k.embedding::text, b.sha256, b.payload FROM chunk c"
        " JOIN memory_key k ON k.tenant_id = c.tenant_id AND k.chunk_id = c.id"
        " JOIN memory_blob b ON (b.tenant_id, b.chunk_id, b.profile_id)"
        " = (k.tenant_id, k.chunk_id, k.profile_id)"
    ).fetchall()
    for chunk, body, embedding, digest, payload in rows:
        if hashlib.sha256(payload).hexdigest() != digest:
            yield f"the blob of chunk {chunk} is not what its digest says"
        elif not _is_of(body, embedding, payload):
            yield f"the memory of chunk {chunk} is not that of its text"


def _is_of(body: str, embedding: str, payload: bytes) -> bool:
    m = models()
    kept = unpack(payload, m.profile.id, m.codec, m.lm.dtype)
    (made,) = m.encoder.encode([m.prompt.chunk(body)])
    if kept.keys.shape != made.keys.shape:
        return False
    key = torch.tensor([float(x) for x in embedding.strip("[]").split(",")])
    return (
        min(
            _likeness(kept.keys, made.keys),
            _likeness(kept.values, made.values),
            _likeness(key, m.embedder.embed([body])[0]),
        )
        > _LEAST_LIKENESS
    )


def _likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0))


def _traces(
    connection: psycopg.Connection[Any], words: Iterable[str], home: Path, valkey: str | None = None
) -> Iterator[str]:
    """Words of texts that no document holds any more, in any table, any file beside the database
    or any key of Valkey."""
    alive = " ".join(row[0] for row in connection.execute("SELECT text FROM document"))
    gone = [word for word in words if word not in alive]
    for table in _tables(connection):
        query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
        found = _first("\n".join(row[0] for row in connection.execute(query)), gone)
        if found:
            yield f"table {table} holds {found}, which was deleted"
    for file in home.rglob("*"):
        if file.is_file() and "postgres" not in file.relative_to(home).parts:
            found = _first(file.read_bytes().decode("latin-1"), gone)
            if found:
                yield f"file {file.relative_to(home)} holds {found}, which was deleted"
    for key, value in _held(valkey) if valkey else ():
        found = _first(f"{key} {value}", gone)
        if found:
            yield f"Valkey's {key} holds {found}, which was deleted"


def _held(url: str) -> Iterator[tuple[str, str]]:
    """Every key of Valkey and what it holds, as text."""
    with redis.Redis.from_url(url, encoding="latin-1", decode_responses=True) as valkey:
        for key in valkey.scan_iter():
            read = {
                "string": lambda k: valkey.get(k),
                "list": lambda k: valkey.lrange(k, 0, -1),
                "set": lambda k: valkey.smembers(k),
                "hash": lambda k: valkey.hgetall(k),
                "zset": lambda k: valkey.zrange(k, 0, -1, withscores=True),
                "stream": lambda k: valkey.xrange(k),
                "none": lambda _: "",
            }[valkey.type(key)]
            yield key, str(read(key))


def _first(text: str, words: Sequence[str]) -> str | None:
    return next((word for word in words if word in text), None)


def _tables(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1"
    )
    # A blob's bytes are no text, and all of them would not fit.
    return [row[0] for row in rows if row[0] != "memory_blob"]
