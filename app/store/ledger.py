"""Accounts for a budget of bytes shared by tenants, and decides what is evicted for a new entry."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
_LASTING = 0.8
"""Largest share of a tenant's bytes for entries used again; the rest leaves room for new ones."""


@dataclass
class _Shelf(Generic[K]):
    """One tenant's keys and their bytes, least recently used first.

    `once` holds entries that have not been used since they were added, `again` those that have.
    """

    once: OrderedDict[K, int] = field(default_factory=OrderedDict)
    again: OrderedDict[K, int] = field(default_factory=OrderedDict)
    bytes: int = 0
    bytes_again: int = 0


class Ledger(Generic[K]):
    """Keeps entries within a budget of bytes, by tenant and key. Holds no values; not thread-safe.

    The tenant with the most bytes makes room. So a tenant that reads through a large bank evicts
    others' entries until it has as many bytes as any of them, and from then on its own. Within a
    tenant, entries used once are evicted before those used again (segmented LRU, Karedla et al.
    1994).
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes, self.entries = budget, 0, 0
        self._shelves: dict[int, _Shelf[K]] = {}

    def add(self, tenant: int, key: K, size: int) -> list[tuple[int, K]]:
        """Add an entry; return the (tenant, key) pairs evicted for it.

        An entry larger than the budget is not held, and is returned itself.
        """
        self.remove(tenant, key)
        if size > self.budget:
            return [(tenant, key)]
        gone = []
        while self.bytes + size > self.budget:
            gone.append(self._give_way(tenant, size))
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.once[key] = size
        self._count(shelf, size, 1)
        return gone

    def use(self, tenant: int, key: K) -> bool:
        """Record that an entry was used again; return False if it is not held."""
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return False
        if key in shelf.again:
            shelf.again.move_to_end(key)
            return True
        size = shelf.once.pop(key, None)
        if size is None:
            return False
        shelf.again[key] = size
        shelf.bytes_again += size
        while shelf.bytes_again > _LASTING * shelf.bytes:
            oldest, size = shelf.again.popitem(last=False)
            shelf.once[oldest] = size
            shelf.bytes_again -= size
        return True

    def remove(self, tenant: int, key: K) -> None:
        """Remove an entry, if it is held."""
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return
        size = shelf.once.pop(key, None)
        if size is None and (size := shelf.again.pop(key, None)) is not None:
            shelf.bytes_again -= size
        if size is not None:
            self._count(shelf, -size, -1)
        if not (shelf.once or shelf.again):
            del self._shelves[tenant]

    def held(self) -> dict[int, list[K]]:
        """Return all keys by tenant."""
        return {t: [*shelf.once, *shelf.again] for t, shelf in self._shelves.items()}

    def _give_way(self, adding: int, size: int) -> tuple[int, K]:
        tenant = max(
            self._shelves,
            key=lambda t: (self._shelves[t].bytes + size * (t == adding), t == adding),
        )
        shelf = self._shelves[tenant]
        key = next(iter(shelf.once or shelf.again))
        self.remove(tenant, key)
        return tenant, key

    def _count(self, shelf: _Shelf[K], size: int, entries: int) -> None:
        shelf.bytes += size
        self.bytes += size
        self.entries += entries
