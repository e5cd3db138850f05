"""The value type that crosses the method: the keys and values of one memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

ABSENT = torch.finfo(torch.float32).min
"""The log-bias of an entry that is not there."""


@dataclass(frozen=True)
class KV:
    """Un-rotated keys and values of a chunk: one entry a token, or fewer after compaction.

    keys, values: (layers, kv_heads, entries, head_dim). They are never written to: whoever wants
    to change them makes new ones.
    bias: (layers, kv_heads, entries), added to the attention logits of an entry; ABSENT or minus
    infinity where a head has no such entry, for every entry where a layer has no memory. None: 0.
    offsets: (layers, kv_heads, entries), integers, the entries' places inside the chunk; None:
    0 .. entries - 1.
    length: tokens of the chunk that it stands for, which are the positions it takes up; 0: as
    many as entries.
    Raises ValueError when the shapes do not belong together.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None
    offsets: Tensor | None = None
    length: int = 0

    def __post_init__(self) -> None:
        shape = self.keys.shape[:3]
        for name in ("values", "bias", "offsets"):
            part: Tensor | None = getattr(self, name)
            if part is not None and part.shape[:3] != shape:
                raise ValueError(f"{name} of shape {tuple(part.shape)} with keys of {tuple(shape)}")
        if not self.length:
            object.__setattr__(self, "length", self.entries)

    @property
    def entries(self) -> int:
        """Entries of a head, those included that are only there to make heads equally long."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = (self.keys, self.values, self.bias, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device | str) -> "KV":
        """This memory with its tensors on `device`: copies, unless they are there already."""
        bias = None if self.bias is None else self.bias.to(device)
        offsets = None if self.offsets is None else self.offsets.to(device)
        return KV(self.keys.to(device), self.values.to(device), bias, offsets, self.length)
