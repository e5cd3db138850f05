"""Several memories for each request of a batch -> one padded, positioned set of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from app.errors import MembankError
from app.memory.kv import ABSENT, KV
from app.memory.model.rotary import Rotary


@dataclass(frozen=True)
class Memories:
    """What attention reads beside the live tokens. Nothing is ever written to it.

    keys, values: (layers, batch, kv_heads, entries, head_dim), keys turned to their positions;
    bias: (layers or 1, batch, kv_heads or 1, entries), added to the logits, ABSENT for padding
    and for entries that a head has not; None where nothing is to be added;
    places: (layers or 1, batch, kv_heads or 1, entries), the entries' positions;
    owner: (batch, entries), index of the memory that an entry belongs to, -1 for shared prefix
    and padding; start: (batch,), the position of each request's first live token.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    places: Tensor
    owner: Tensor
    start: Tensor

    def positions(self, n: int, before: int = 0) -> Tensor:
        """position_ids (batch, n) of live tokens `before` .. `before + n - 1`."""
        return self.start[:, None] + torch.arange(before, before + n, device=self.start.device)

    def entries(self, request: int) -> int:
        """Entries that a request reads in any head, prefix included, padding not."""
        if self.bias is None:
            return self.keys.shape[3]
        return int((self.bias[:, request] > ABSENT).any(dim=1).any(dim=0).sum())

    def bias_of(self, layer: int) -> Tensor | None:
        """What is added to one layer's logits, (batch, kv_heads or 1, 1, entries)."""
        return None if self.bias is None else _layer(self.bias, layer)[:, :, None]

    def outside(self, layer: int, window: int, position_ids: Tensor) -> Tensor:
        """True for entries beyond a sliding window, (batch, kv_heads or 1, n, entries)."""
        places = _layer(self.places, layer)
        return position_ids[:, None, :, None] - places[:, :, None, :] >= window

    def preferring(self, gains: Tensor) -> "Memories":
        """A copy in which the logits of each memory's entries are raised by its gain.

        gains: (batch, memories of the longest request), in nats; what prefix and padding get is
        unchanged. The log of how likely each memory is to hold the answer makes attention weigh
        them as a mixture would (Retrieval-Augmented Generation, arXiv 2005.11401).
        """
        owner = self.owner
        added = gains.to(owner.device).gather(1, owner.clamp_min(0)).masked_fill(owner < 0, 0.0)
        added = added[None, :, None]
        return replace(self, bias=added if self.bias is None else self.bias + added)


def compose(
    requests: Sequence[Sequence[KV]],
    rotary: Rotary,
    prefix: KV | None = None,
) -> Memories:
    """Lay out each request's memories behind the shared prefix and turn keys to their places.

    The prefix stands at positions 0 .. p-1, and the memories follow one another, as text in a
    prompt would (docs/decisions/0003). A memory takes up the positions of its chunk, however few
    entries are left of it. The live tokens come after the last position. Requests of different
    size are padded and the padding is masked.
    Raises MembankError when there is nothing to lay out.
    """
    rows = [_placed(memories, prefix) for memories in requests]
    everyone = [one.kv for row in rows for one in row]
    if not everyone:
        raise MembankError("nothing to compose: no memories and no prefix; call the model itself")
    first, widths = everyone[0], [row[-1].end if row else 0 for row in rows]
    size, width, device = len(rows), max(widths), first.keys.device
    per_head = (first.keys.shape[0], size, first.keys.shape[1], width)
    alike = (1, size, 1, width)
    scattered = any(kv.offsets is not None for kv in everyone)
    weighted = any(kv.bias is not None for kv in everyone)
    keys = first.keys.new_zeros(*per_head, first.keys.shape[-1])
    values = first.values.new_zeros(*per_head, first.values.shape[-1])
    places = torch.zeros(per_head if scattered else alike, dtype=torch.long, device=device)
    bias = None
    if weighted or min(widths) < width:
        bias = torch.full(per_head if weighted else alike, ABSENT, device=device)
    owner = torch.full((size, width), -1, device=device)
    for index, row in enumerate(rows):
        for number, kv, place, slot in row:
            here = slice(slot, slot + kv.entries)
            keys[:, index, :, here] = kv.keys
            values[:, index, :, here] = kv.values
            places[:, index, :, here] = place + _offsets(kv)
            if bias is not None:
                bias[:, index, :, here] = 0.0 if kv.bias is None else kv.bias.clamp_min(ABSENT)
            owner[index, here] = number
    starts = [max((one.place + one.kv.length for one in row), default=0) for row in rows]
    turned = rotary.rotate(keys, places if scattered else places[0, :, 0])
    return Memories(turned, values, bias, places, owner, torch.tensor(starts, device=device))


class _Placed(NamedTuple):
    owner: int
    kv: KV
    place: int
    slot: int

    @property
    def end(self) -> int:
        return self.slot + self.kv.entries


def _placed(memories: Sequence[KV], prefix: KV | None) -> list[_Placed]:
    """One request's row: whose turn it is, at which position and in which slot it begins."""
    row = [] if prefix is None else [_Placed(-1, prefix, 0, 0)]
    place, slot = (prefix.length, prefix.entries) if prefix is not None else (0, 0)
    for number, kv in enumerate(memories):
        row.append(_Placed(number, kv, place, slot))
        slot += kv.entries
        place += kv.length
    return row


def _offsets(kv: KV) -> Tensor:
    return torch.arange(kv.entries, device=kv.keys.device) if kv.offsets is None else kv.offsets


def _layer(x: Tensor, layer: int) -> Tensor:
    return x[layer if x.shape[0] > 1 else 0]
