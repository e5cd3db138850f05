"""Several memories for each request of a batch -> one padded, positioned set of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from app.errors import MembankError
from app.memory.kv import KV
from app.memory.rotary import Rotary

Layout = Literal["sequence", "shared"]
_NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Memories:
    """What attention reads beside the live tokens.

    keys, values: (layers, batch, kv_heads, entries, head_dim), keys turned to their positions;
    bias: (batch, entries), 0 or, for padding, minus infinity's stand-in;
    owner: (batch, entries), index of the memory that an entry belongs to, -1 for shared prefix
    and padding; places: (batch, entries), the entries' positions; start: (batch,), the position
    of each request's first live token.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    owner: Tensor
    places: Tensor
    start: Tensor
    _noted: list[Tensor] = field(default_factory=list, repr=False)

    def positions(self, n: int, before: int = 0) -> Tensor:
        """position_ids (batch, n) of live tokens `before` .. `before + n - 1`."""
        return self.start[:, None] + torch.arange(before, before + n, device=self.start.device)

    def entries(self, request: int) -> int:
        """Entries that a request reads, prefix included, padding not."""
        return int((self.bias[request] == 0).sum())

    def outside(self, window: int, position_ids: Tensor) -> Tensor:
        """Additive mask (batch, 1, n, entries) of entries further back than a sliding window."""
        distance = position_ids[:, :, None] - self.places[:, None, :]
        return torch.where(distance < window, 0.0, _NEVER)[:, None]

    def note(self, weights: Tensor) -> None:
        """Remember one layer's attention of a prompt's last token, (batch, heads, entries)."""
        if len(self._noted) < self.keys.shape[0]:
            self._noted.append(weights.mean(dim=1))

    def shares(self, request: int, memories: int) -> list[float]:
        """Share of attention that each of a request's memories got, mean over heads and layers.

        The shares of the memories, the prefix and the live tokens add up to 1.
        """
        if not self._noted:
            return [0.0] * memories
        mean = torch.stack(self._noted).mean(dim=0)[request]
        owner = self.owner[request]
        return [float(mean[owner == i].sum()) for i in range(memories)]


def compose(
    requests: Sequence[Sequence[KV]],
    rotary: Rotary,
    prefix: KV | None = None,
    layout: Layout = "sequence",
) -> Memories:
    """Lay out each request's memories behind the shared prefix and turn keys to their places.

    The prefix stands at positions 0 .. p-1. In "sequence" the memories follow one another, as text
    in a prompt would; in "shared" all of them start at p (Memory3, APE). The live tokens come
    after the last entry. Requests of different size are padded and the padding is masked.
    Raises MembankError when there is nothing to lay out.
    """
    rows = [[*([] if prefix is None else [prefix]), *memories] for memories in requests]
    shown = next((kv for row in rows for kv in row), None)
    if shown is None:
        raise MembankError("nothing to compose: no memories and no prefix; call the model itself")
    width = max(sum(kv.entries for kv in row) for row in rows)
    layers, kv_heads, _, dim = shown.keys.shape
    size, device = len(rows), shown.keys.device
    keys = shown.keys.new_zeros(layers, size, kv_heads, width, dim)
    values = shown.values.new_zeros(layers, size, kv_heads, width, shown.values.shape[-1])
    bias = torch.full((size, width), _NEVER, device=device)
    owner = torch.full((size, width), -1, device=device)
    places = torch.zeros(size, width, dtype=torch.long, device=device)
    start = torch.zeros(size, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        slot = place = 0
        for number, kv in enumerate(row, start=0 if prefix is None else -1):
            end = slot + kv.entries
            keys[:, index, :, slot:end] = kv.keys
            values[:, index, :, slot:end] = kv.values
            bias[index, slot:end] = 0.0
            owner[index, slot:end] = number
            places[index, slot:end] = torch.arange(place, place + kv.entries, device=device)
            start[index] = max(int(start[index]), place + kv.entries)
            slot = end
            if layout == "sequence" or number < 0:
                place += kv.entries
    return Memories(rotary.rotate(keys, places), values, bias, owner, places, start)
