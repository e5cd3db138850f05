"""Keys of many tenants, written to a database in bulk, and the right results of searching them.

Keys are drawn around some hundred topics in a space of few dimensions, like an embedder's, or taken
from real texts, with noise added where there are not enough. They are written with triggers off,
which is only fit for databases that are thrown away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psycopg
from numpy.typing import NDArray

from app.access.principals import add_principal
from app.access.tenants import add_tenant
from app.bank.banks import add_bank
from app.bank.find import Bank
from app.db.session import Asker, transaction

Array = NDArray[np.float32]

PROFILE = "0" * 32
DIMENSIONS = 384
SHARES = (1, 10, 100)
"""Percentages of a tenant's documents that its readers may read."""
_IN_A_DOCUMENT = 8
_TOPICS, _FREE = 300, 48
_OF_OTHERS = 1000
_BLOCK = 50_000


class Keys:
    """Draws keys and questions, the same in every run."""

    def __init__(self, seed: int, real: Array | None = None) -> None:
        """`real` holds keys of texts, (texts, 384), from which the others are drawn."""
        self._random = np.random.default_rng(seed)
        self._spread = self._random.normal(size=(_FREE, DIMENSIONS)).astype(np.float32) / 7
        self._topics = self._random.normal(size=(_TOPICS, _FREE)).astype(np.float32)
        self._real = real

    def draw(self, count: int) -> Array:
        """Draw keys (count, 384), float32, of length 1, rounded as by 16-bit storage."""
        if self._real is not None:
            there = len(self._real)
            chosen = self._random.permutation(max(count, there))[:count] % there
            keys = self.near(self._real[chosen], 0.02 if count > there else 0.0)
        else:
            place = self._topics[self._random.integers(_TOPICS, size=count)]
            place = place + 0.7 * self._normal(count, _FREE)
            keys = place @ self._spread + 0.15 * self._normal(count, DIMENSIONS)
        return _rounded(keys)

    def near(self, keys: Array, noise: float = 0.02) -> Array:
        """Draw keys near the given ones, as those of questions are."""
        return _rounded(keys + noise * self._normal(*keys.shape))

    def _normal(self, *shape: int) -> Array:
        return self._random.standard_normal(size=shape, dtype=np.float32)


def _rounded(keys: Array) -> Array:
    unit: Array = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    rounded: Array = unit.astype(np.float16).astype(np.float32)
    return rounded


@dataclass(frozen=True)
class Filled:
    """A tenant with one bank, the keys of its memories, and the id of the first memory."""

    bank: Bank
    first: int
    keys: Array
    readers: dict[int, Asker]
    texts: Sequence[str]

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The number of each memory's document."""
        return np.arange(len(self.keys)) // _IN_A_DOCUMENT

    @cached_property
    def lengths(self) -> Array:
        """The lengths of the keys, which rounding leaves slightly off 1."""
        lengths: Array = np.linalg.norm(self.keys, axis=1)
        return lengths

    def readable(self, share: int) -> NDArray[np.int64]:
        """Indices of the memories that the reader of a share may read."""
        return np.flatnonzero(self.documents % (100 // share) == 0)

    def nearest(self, question: Array, share: int, k: int) -> list[int]:
        """Ids of the k nearest memories that the reader of a share may read, by brute force."""
        some = self.readable(share)
        cosines = (self.keys @ question / self.lengths)[some]
        order = np.argsort(-cosines, kind="stable")[:k]
        return [int(self.first + some[i]) for i in order]


class Rows:
    """Fills a database as its superuser."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._url, self._keys, self._next = url, keys, 1
        self._words = np.array([f"word{number}" for number in range(5000)])

    def tenant(self, name: str, size: int) -> Filled:
        """Add a tenant with a reader for each share, and `size` memories of realistic length."""
        readers = {}
        with transaction(Asker("admin")) as administrator:
            number = add_tenant(administrator, name)
            bank = add_bank(administrator, number, "bank", PROFILE, "{}")
            for share in SHARES:
                reader = add_principal(administrator, number, f"reader{share}")
                readers[share] = Asker("app", number, reader)
        chance = np.random.default_rng(size)
        texts = [" ".join(some) for some in chance.choice(self._words, size=(size, 70))]
        filled = Filled(bank, self._next, self._keys.draw(size), readers, texts)
        with self._open() as connection:
            self._documents(connection, [bank], size)
            with connection.cursor().copy(
                "COPY chunk (tenant_id, id, bank_id, document_id, ordinal, text, heading, start_at,"
                " end_at, hash) FROM STDIN"
            ) as copy:
                for at, words in enumerate(texts):
                    place = (bank.id, _document(at), at % _IN_A_DOCUMENT, words)
                    copy.write_row((bank.tenant, self._next + at, *place, "", 0, 1, "0"))
            _copy(connection, [bank], self._next, filled.keys)
        self._next += size
        return filled

    def others(self, rows: int) -> Iterator[int]:
        """Add tenants of 1,000 memories each, which nobody asks, reporting the number of rows."""
        with self._open() as connection:
            for start in range(0, rows, _BLOCK):
                count = max(1, min(_BLOCK, rows - start) // _OF_OTHERS)
                banks = self._banks(connection, start, count)
                self._documents(connection, banks, _OF_OTHERS)
                connection.execute(
                    "INSERT INTO chunk (tenant_id, id, bank_id, document_id, ordinal, text,"
                    " heading, start_at, end_at, hash) OVERRIDING SYSTEM VALUE"
                    " SELECT b.tenant, %(first)s + (b.n - 1) * %(size)s + i, b.bank,"
                    " 'd' || lpad((i / %(each)s)::text, 9, '0'), i %% %(each)s, 'text ' || i, '',"
                    " 0, 1, '0' FROM unnest(%(tenants)s::bigint[], %(banks)s::bigint[])"
                    " WITH ORDINALITY b (tenant, bank, n), generate_series(0, %(size)s - 1) i",
                    _ids(banks) | {"first": self._next, "size": _OF_OTHERS, "each": _IN_A_DOCUMENT},
                )
                keys = self._keys.draw(count * _OF_OTHERS)
                _copy(connection, banks, self._next, keys)
                self._next += len(keys)
                yield self._next - 1

    def settle(self) -> None:
        """Do at once what autovacuum would do in time."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")

    def _open(self) -> psycopg.Connection:
        connection = psycopg.connect(self._url)
        # Foreign keys and the queue are triggers too.
        for table in ("document", "chunk", "memory_key"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        return connection

    def _banks(self, connection: psycopg.Connection, start: int, count: int) -> list[Bank]:
        rows = connection.execute(
            "WITH t AS (INSERT INTO tenant (name) SELECT 'other' || %(start)s || '.' || i"
            " FROM generate_series(1, %(count)s) i RETURNING id),"
            " p AS (INSERT INTO encoder_profile SELECT id, %(profile)s, '{}' FROM t)"
            " INSERT INTO bank (tenant_id, name, profile_id)"
            " SELECT id, 'bank', %(profile)s FROM t RETURNING tenant_id, id",
            {"start": start, "count": count, "profile": PROFILE},
        )
        return [Bank(tenant, bank, "bank", PROFILE, {}) for tenant, bank in rows.fetchall()]

    def _documents(self, connection: psycopg.Connection, banks: Sequence[Bank], size: int) -> None:
        connection.execute(
            "INSERT INTO document (tenant_id, bank_id, id, source, title, text, access,"
            " split_revision, content_hash)"
            " SELECT b.tenant, b.bank, 'd' || lpad(i::text, 9, '0'), 'bench', 'Title', body.text,"
            " ARRAY(SELECT 'principal:reader' || s FROM unnest(%(shares)s::int[]) s"
            " WHERE i %% (100 / s) = 0), 1, document_hash('Title', body.text)"
            " FROM unnest(%(tenants)s::bigint[], %(banks)s::bigint[]) b (tenant, bank),"
            " generate_series(0, (%(size)s - 1) / %(each)s) i,"
            " LATERAL (SELECT repeat('text of the document ' || i || ' ', 60)) body (text)",
            _ids(banks) | {"shares": list(SHARES), "size": size, "each": _IN_A_DOCUMENT},
        )


def _ids(banks: Sequence[Bank]) -> dict[str, object]:
    return {"tenants": [b.tenant for b in banks], "banks": [b.id for b in banks]}


def _document(memory: int) -> str:
    return f"d{memory // _IN_A_DOCUMENT:09d}"


_ROW = np.dtype(
    [
        ("fields", ">i2"),
        *[("tenant_bytes", ">i4"), ("tenant", ">i8"), ("chunk_bytes", ">i4"), ("chunk", ">i8")],
        *[("profile_bytes", ">i4"), ("profile", f"S{len(PROFILE)}")],
        *[("bank_bytes", ">i4"), ("bank", ">i8"), ("document_bytes", ">i4"), ("document", "S10")],
        *[("key_bytes", ">i4"), ("dimensions", ">i2"), ("unused", ">i2")],
        ("key", ">f2", (DIMENSIONS,)),
    ]
)
"""A row of memory_key in COPY's binary format, in which every field has a fixed length."""


def _copy(connection: psycopg.Connection, banks: Sequence[Bank], first: int, keys: Array) -> None:
    """Copy the keys of one bank, or of several with equally many each."""
    each = len(keys) // len(banks)
    rows = np.zeros(len(keys), _ROW)
    rows["fields"], rows["profile"], rows["key"] = 6, PROFILE.encode(), keys
    rows["tenant"] = np.repeat([b.tenant for b in banks], each)
    rows["bank"] = np.repeat([b.id for b in banks], each)
    rows["chunk"] = first + np.arange(len(keys))
    rows["document"] = [_document(at % each).encode() for at in range(len(keys))]
    rows["dimensions"], rows["key_bytes"] = DIMENSIONS, 4 + 2 * DIMENSIONS
    rows["tenant_bytes"] = rows["chunk_bytes"] = rows["bank_bytes"] = 8
    rows["profile_bytes"], rows["document_bytes"] = len(PROFILE), 10
    with connection.cursor().copy(
        "COPY memory_key (tenant_id, chunk_id, profile_id, bank_id, document_id, embedding)"
        " FROM STDIN (FORMAT binary)"
    ) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        copy.write(rows.tobytes())
        copy.write(b"\xff\xff")
