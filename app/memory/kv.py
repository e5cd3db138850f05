"""The value type that crosses the method: the keys and values of one memory."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KV:
    """Un-rotated keys and values of `entries` tokens.

    keys, values: (layers, kv_heads, entries, head_dim). They are never written to: whoever wants
    to change them makes new ones.
    """

    keys: Tensor
    values: Tensor

    @property
    def entries(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
