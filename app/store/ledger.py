"""Who holds how many bytes of a budget, and what gives way to something new."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
_LASTING = 0.8
"""Share of a tenant's bytes for what was used again: something new needs a chance too."""


@dataclass
class _Shelf(Generic[K]):
    """What one tenant holds, least recently used first: key -> bytes."""

    once: OrderedDict[K, int] = field(default_factory=OrderedDict)
    again: OrderedDict[K, int] = field(default_factory=OrderedDict)
    bytes: int = 0
    bytes_again: int = 0


class Ledger(Generic[K]):
    """Bytes held within a budget, by tenant and key. Holds no values; not safe for threads.

    Room is made by the tenant with most bytes. So whoever reads through a large bank pushes others
    out until it has as much as any of them, and then itself. Within a tenant what was used once
    goes before what was used again (segmented LRU, Karedla et al. 1994).
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes, self.entries = budget, 0, 0
        self._shelves: dict[int, _Shelf[K]] = {}

    def add(self, tenant: int, key: K, size: int) -> list[tuple[int, K]]:
        """Hold something new; what has to go for it, with its tenant: itself if it is too large."""
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
        """It is used again; False where it is not held."""
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
        """Also where it is not held."""
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
        """All keys by tenant."""
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
