"""How strongly a prompt attends to each of its memories: what an answer says of its sources."""

import torch
from torch import Tensor

from app.memory.compose import Memories


class Shares:
    """Attention of the last token of a prompt to the memories' entries, filled in while it is read.

    One for each forward pass: whoever runs it gives an empty one and asks it afterwards.
    """

    def __init__(self) -> None:
        self._layers: dict[int, Tensor] = {}

    def note(self, layer: int, weights: Tensor) -> None:
        """Keep a layer's attention of the last token, (batch, heads, entries); its first counts."""
        if layer not in self._layers:
            self._layers[layer] = weights.detach().mean(dim=1)

    def of(self, memories: Memories, request: int, count: int) -> list[float]:
        """The share of each of a request's `count` memories, mean over heads and layers.

        The shares of the memories, the prefix and the live tokens add up to 1. All are 0 where
        nothing was read yet.
        """
        if not self._layers:
            return [0.0] * count
        mean = torch.stack(list(self._layers.values())).mean(dim=0)[request]
        owner = memories.owner[request]
        return [float(mean[owner == i].sum()) for i in range(count)]
