"""Ways to read a prompt and go on token by token, behind one small interface.

The fastest that a model and a machine allow is taken; transformers' own modules are the reference
and what is left for a model of another shape.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from app.errors import ModelError
from app.memory.attention import injected
from app.memory.compose import Memories
from app.memory.flat import Flat, FlatReading
from app.memory.model import LanguageModel
from app.memory.native import Native, NativeReading

Weights = Literal["auto", "float", "int8", "int4"]


class Reading(Protocol):
    """A request that is being answered."""

    logits: Tensor
    """Of the next token, (vocabulary,), float32."""

    def feed(self, token: int) -> None:
        """Read one more token; `logits` are then of the one after it."""


Decoder = Callable[[Sequence[int], int, Memories | None], Reading]
"""Reads a prompt behind memories, or none, and has room for so many more tokens."""


def decoder_of(lm: LanguageModel, weights: Weights, folder: Path) -> Decoder:
    """How `lm` is read. `folder` keeps the compiled library of packed weights.

    `float` computes with the model's own weights; `int8` and `int4` round them and raise
    ModelError that says why where they cannot be used; `auto` is packed where that is possible,
    with 8 bits, or 4 where those lose no more, and `float` elsewhere (docs/decisions/0007).
    """
    try:
        flat = Flat(lm)
    except ModelError as error:
        if weights in ("int8", "int4"):
            raise ModelError(
                f"MEMBANK_WEIGHTS={weights} cannot be used with this model, {error}: use auto"
            ) from error
        return partial(ModelReading, lm)
    if weights == "float":
        return partial(FlatReading, flat)
    try:
        return partial(NativeReading, Native(flat, weights, folder))
    except ModelError as error:
        if weights == "auto":
            return partial(FlatReading, flat)
        raise ModelError(
            f"MEMBANK_WEIGHTS={weights} cannot be used: {error}, or use auto"
        ) from error


class ModelReading:
    """The reference: transformers' modules and cache, the memories injected."""

    def __init__(
        self, lm: LanguageModel, prompt: Sequence[int], room: int, memories: Memories | None
    ) -> None:
        """`room` is not needed here: the cache grows."""
        self._lm, self._memories, self._length = lm, memories, 0
        self._cache = DynamicCache(config=lm.model.config.get_text_config())
        self.logits = self._forward(list(prompt))

    def feed(self, token: int) -> None:
        self.logits = self._forward([token])

    @torch.no_grad()
    def _forward(self, ids: list[int]) -> Tensor:
        lm, memories, n = self._lm, self._memories, len(ids)
        if memories is None:
            places = torch.arange(self._length, self._length + n, device=lm.device)[None]
        else:
            places = memories.positions(n, self._length)
        self._length += n
        with nullcontext() if memories is None else injected(lm.model, memories):
            logits: Tensor = lm.model(
                input_ids=torch.tensor([ids], device=lm.device),
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                # As an index, not as the number 1: the slice that a number makes has strides with
                # which bfloat16's vocabulary product takes 78 ms instead of 2 (decisions/0004).
                logits_to_keep=torch.tensor([n - 1], device=lm.device),
            ).logits
        return logits[0, -1].float()
