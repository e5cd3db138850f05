"""The way of a memory to whoever may read it: decoded in this process, on local disk, at home.

What may be read is not decided here. Each caller brings what the database has just told it of the
rows (app/store/blobs.py), and only these are looked for, under keys that name the row's version: so
what was deleted, edited, sealed anew or forbidden is asked for no more.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from app.memory.kv import KV
from app.settings import settings
from app.store.blobs import Held, alive
from app.store.disk import Disk, disk
from app.store.ledger import Ledger

Fetch = Callable[[Sequence[Held]], Mapping[int, bytes]]
"""Stored bytes by chunk, of those that are still there and may be read."""
Decode = Callable[[Sequence[tuple[Held, bytes]]], Sequence[KV]]
"""The memories of packed payloads. Raises BlobError for one that is none."""
_Key = tuple[Held, torch.dtype]
TIERS = ("memory", "disk", "store", "decode")
_PAGE = 1000
_TOGETHER = 4
"""Memories decoded in one call: 20 of 128 tokens take half as long as all at once, when what is in
between no longer fits the processor's cache (decision 0018)."""


def cache() -> "Cache":
    """The cache of this process."""
    return _cache(settings().cache_bytes, disk())


@lru_cache(maxsize=4)
def _cache(budget: int, folder: Disk | None) -> "Cache":
    return Cache(budget, folder)


class Cache:
    """Tiers within budgets of bytes. Safe for threads; two that want one memory load it once."""

    def __init__(self, budget: int, folder: Disk | None) -> None:
        self._disk = folder
        self._lock = threading.Lock()
        self._decoded: dict[_Key, KV] = {}
        self._ledger: Ledger[_Key] = Ledger(budget)
        self._coming: dict[_Key, Future[KV | None]] = {}
        self._counts: dict[str, Counter[str]] = {tier: Counter() for tier in TIERS}
        self._seconds: dict[str, float] = dict.fromkeys(TIERS, 0.0)

    def load(
        self, held: Sequence[Held], dtype: torch.dtype, fetch: Fetch, decode: Decode
    ) -> dict[int, KV]:
        """Decoded memories by chunk, of those that are still there. Nobody may write to them.

        Raises what `fetch` and `decode` raise, VaultError for a memory that does not open.
        """
        found: dict[_Key, KV] = {}
        wanted = dict.fromkeys((one, dtype) for one in held)
        while wanted:
            mine, others = self._claim(wanted, found)
            try:
                loaded = self._load(mine, fetch, decode)
            except BaseException:
                self._settle(mine, {})
                raise
            self._settle(mine, loaded)
            found |= loaded
            with self._timed("memory"):
                found |= {key: kv for key, one in others.items() if (kv := one.result())}
            # Another was forbidden what this one may read, or failed: it is loaded here then.
            wanted = dict.fromkeys(key for key in others if key not in found)
            self._count("memory", hits=len(others) - len(wanted))
        return {key[0].chunk: kv for key, kv in found.items()}

    def sweep(self, stop: threading.Event | None = None) -> int:
        """Drop what is kept of rows that are gone or have changed; how many, files included.

        Not needed for anyone's rights, but so that what was forgotten is nowhere. Raises
        UnavailableError.
        """
        with self._lock:
            keys = self._ledger.held()
        removed = 0
        for tenant, mine in keys.items():
            for at in range(0, len(mine), _PAGE):
                page = mine[at : at + _PAGE]
                rows = alive(tenant, [key[0].chunk for key in page])
                dead = [key for key in page if _row(key[0]) not in rows]
                removed += len(dead)
                with self._lock:
                    for key in dead:
                        self._ledger.remove(tenant, key)
                        self._decoded.pop(key, None)
        return removed + (self._disk.sweep(stop) if self._disk else 0)

    def stats(self) -> dict[str, dict[str, float]]:
        """Tier -> hits, misses, bytes and entries (held now), read_bytes (from it), evicted,
        dropped (damaged), seconds.

        A memory that is asked for is a hit or a miss of "memory", a miss of which is one or the
        other of "disk", a miss of which is one or the other of "store", the database or the object
        store; what disk and store brought is a hit of "decode", where time goes too. A memory that
        another thread is loading already counts as a hit, and the wait as time of "memory".
        """
        names = ("hits", "misses", "bytes", "entries", "read_bytes", "evicted", "dropped")
        with self._lock:
            told: dict[str, dict[str, float]] = {
                tier: {**{n: self._counts[tier][n] for n in names}, "seconds": self._seconds[tier]}
                for tier in TIERS
            }
            told["memory"] |= {"bytes": self._ledger.bytes, "entries": self._ledger.entries}
        if self._disk:
            files, size = self._disk.size()
            told["disk"] |= {"bytes": size, "entries": files, **self._disk.counts}
        return told

    def _claim(
        self, wanted: Mapping[_Key, None], found: dict[_Key, KV]
    ) -> tuple[list[_Key], dict[_Key, "Future[KV | None]"]]:
        """Put what is decoded into `found`; what this thread loads, and what others load."""
        mine, others = [], {}
        with self._timed("memory"), self._lock:
            for key in wanted:
                if (kv := self._decoded.get(key)) is not None:
                    found[key] = kv
                    self._ledger.use(key[0].tenant, key)
                elif (coming := self._coming.get(key)) is not None:
                    others[key] = coming
                else:
                    self._coming[key] = Future()
                    mine.append(key)
        self._count("memory", hits=len(wanted) - len(mine) - len(others), misses=len(mine))
        return mine, others

    def _settle(self, keys: Sequence[_Key], loaded: Mapping[_Key, KV]) -> None:
        with self._lock:
            for key in keys:
                kv = loaded.get(key)
                if kv is not None:
                    self._decoded[key] = kv
                    for _, gone in self._ledger.add(key[0].tenant, key, kv.nbytes):
                        del self._decoded[gone]
                        self._counts["memory"]["evicted"] += 1
                self._coming.pop(key).set_result(kv)

    def _load(self, keys: Sequence[_Key], fetch: Fetch, decode: Decode) -> dict[_Key, KV]:
        if not keys:
            return {}
        held = {key[0].chunk: key[0] for key in keys}
        stored: dict[int, bytes] = {}
        if self._disk:
            with self._timed("disk"):
                read = ((chunk, self._disk.read(one)) for chunk, one in held.items())
                stored = {chunk: data for chunk, data in read if data is not None}
            self._came("disk", len(held), stored)
        fetched: Mapping[int, bytes] = {}
        if len(stored) < len(held):
            with self._timed("store"):
                fetched = fetch([one for chunk, one in held.items() if chunk not in stored])
            self._came("store", len(held) - len(stored), fetched)
        all_stored = stored | dict(fetched)
        with self._timed("decode"):
            opened = [(held[chunk], held[chunk].open(data)) for chunk, data in all_stored.items()]
            groups = (opened[at : at + _TOGETHER] for at in range(0, len(opened), _TOGETHER))
            memories = [_own(kv) for group in groups for kv in decode(group)]
        self._count("decode", hits=len(memories))
        if self._disk and fetched:
            with self._timed("disk"):
                for chunk, data in fetched.items():
                    self._disk.write(held[chunk], data)
        return {(one, keys[0][1]): kv for (one, _), kv in zip(opened, memories, strict=True)}

    def _came(self, tier: str, wanted: int, found: Mapping[int, bytes]) -> None:
        read = sum(map(len, found.values()))
        self._count(tier, hits=len(found), misses=wanted - len(found), read_bytes=read)

    def _count(self, tier: str, **more: int) -> None:
        with self._lock:
            self._counts[tier].update(more)

    @contextmanager
    def _timed(self, tier: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            with self._lock:
                self._seconds[tier] += spent


def _row(held: Held) -> tuple[int, str, str, str]:
    return held.chunk, held.profile, held.version, held.sha256


def _own(kv: KV) -> KV:
    """With tensors of its own, so that what is dropped is free: a codec may give views of one that
    several memories share."""
    bias = None if kv.bias is None else _alone(kv.bias)
    offsets = None if kv.offsets is None else _alone(kv.offsets)
    return KV(_alone(kv.keys), _alone(kv.values), bias, offsets, kv.length)


def _alone(x: Tensor) -> Tensor:
    if x.untyped_storage().nbytes() == x.nbytes:
        return x
    return x.clone(memory_format=torch.contiguous_format)
