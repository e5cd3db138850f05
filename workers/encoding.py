"""What a worker does with leased work: it splits documents and encodes chunks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby

import structlog
import torch

from app.bank import documents
from app.db.session import Asker, transaction
from app.errors import VaultError
from app.ingest.storing import pieces_of
from app.memory.codec.pack import pack
from app.queue import outbox
from app.queue.encoding import Encoded, chunk_texts, finish_encoding
from app.queue.outbox import Work
from app.runtime.identity import compactor, count_tokens
from app.runtime.models import models
from app.settings import settings

log = structlog.get_logger("worker")
_MOST_STREAMS = 4
"""Threads that encode at the same time; each needs memory for a batch of its own."""


def split(work: Sequence[Work]) -> int:
    """Split the current text of each document into chunks; return how many were split."""
    return sum(_split(one) for one in work)


def encode(work: Sequence[Work]) -> int:
    """Encode all chunks, then write each tenant's memories in one short transaction.

    Returns how many were written. Work that this process cannot seal is left to other workers.
    """
    by_tenant = {
        tenant: list(rows) for tenant, rows in groupby(sorted(work, key=_tenant), key=_tenant)
    }
    texts: dict[tuple[int, int | None], str] = {}
    for tenant, rows in by_tenant.items():
        try:
            found = chunk_texts(tenant, rows)
        except VaultError as error:
            log.warning("cannot seal memories, left to others", tenant=tenant, reason=str(error))
            outbox.postpone(rows, f"{type(error).__name__}: {error}")
            continue
        texts |= {(tenant, chunk): text for chunk, text in found.items()}
    alive = [w for w in work if (w.tenant, w.chunk) in texts]
    memories = _encode([texts[w.tenant, w.chunk] for w in alive])
    done = [Encoded(one, key, payload) for one, (key, payload) in zip(alive, memories, strict=True)]
    return sum(
        finish_encoding(tenant, models().profile.id, [d for d in done if d.work in rows])
        for tenant, rows in by_tenant.items()
    )


def _encode(chunks: Sequence[str]) -> list[tuple[list[float], bytes]]:
    """Return the key and the payload of each chunk, given by its text.

    On a CPU, several threads each take a share of the chunks from token ids to blobs. Sharing each
    forward pass among them would make every layer wait for the slowest thread, and packing cannot
    be shared at all.
    """
    streams = min(_streams(), len(chunks))
    if streams < 2:
        return _memories(chunks)
    order = sorted(range(len(chunks)), key=lambda i: len(chunks[i]))
    parts = [order[first::streams] for first in range(streams)]
    done = list(_threads().map(_memories, [[chunks[i] for i in part] for part in parts]))
    found: dict[int, tuple[list[float], bytes]] = {}
    for part, some in zip(parts, done, strict=True):
        found |= zip(part, some, strict=True)
    return [found[i] for i in range(len(chunks))]


@lru_cache(maxsize=1)
def _streams() -> int:
    if models().lm.device.type != "cpu":
        return 1
    return min(_MOST_STREAMS, torch.get_num_threads())


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    each = max(1, torch.get_num_threads() // _streams())
    return ThreadPoolExecutor(_streams(), "encode", torch.set_num_threads, (each,))


def _memories(chunks: Sequence[str]) -> list[tuple[list[float], bytes]]:
    if not chunks:
        return []
    m, size = models(), settings().batch_tokens
    tokens = [m.prompt.chunk(text) for text in chunks]
    dense = m.encoder.encode(tokens, size)
    memories = compactor().compact(m.encoder, tokens, dense, size)
    keys = m.embedder.embed(chunks).tolist()
    return [(key, pack(kv, m.profile.id, m.codec)) for key, kv in zip(keys, memories, strict=True)]


def _split(work: Work) -> int:
    with transaction(Asker("worker", work.tenant)) as connection:
        found = documents.read_text(connection, work.tenant, work.bank, work.document)
    if found is None:
        return 0
    title, text, revision = found
    pieces = pieces_of(title, text, count_tokens)
    with transaction(Asker("worker", work.tenant)) as connection:
        if not outbox.take(connection, work):
            return 0  # edited meanwhile: the row is now for the newer text
        done = documents.apply_split(
            connection, work.tenant, work.bank, work.document, revision, pieces
        )
        return int(done)


def _tenant(work: Work) -> int:
    return work.tenant
