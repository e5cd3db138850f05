"""Ways to read a prompt and go on token by token, behind one small interface.

The fastest that a model and a machine allow is taken; transformers' own modules are the reference
and what is left for a model of another shape.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from app.errors import ModelError
from app.memory.attention import injected
from app.memory.decode.flat import Flat, FlatDecoder, Start
from app.memory.decode.native import Native, NativeDecoder
from app.memory.model.load import LanguageModel

Weights = Literal["auto", "float", "int8", "int4"]


class Reading(Protocol):
    """A request that is being answered."""

    logits: Tensor
    """Of the next token, (vocabulary,), float32."""


class Decoder(Protocol):
    """Reads requests, each with memories of its own, and gives each what it would get alone.

    On a GPU numbers may be rounded otherwise in a batch of another size, and only there.
    """

    def read(self, starts: Sequence[Start]) -> Sequence[Any]:
        """Read the prompts, behind memories or none: a Reading for each."""

    def feed(self, readings: Sequence[Any], tokens: Sequence[int]) -> None:
        """Read one more token of each; `logits` are then of the ones after them."""


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
        return ModelDecoder(lm)
    if weights == "float":
        return FlatDecoder(flat)
    try:
        return NativeDecoder(Native(flat, weights, folder))
    except ModelError as error:
        if weights == "auto":
            return FlatDecoder(flat)
        raise ModelError(
            f"MEMBANK_WEIGHTS={weights} cannot be used: {error}, or use auto"
        ) from error


class ModelDecoder:
    """The reference: transformers' modules and cache, one request after the other."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def read(self, starts: Sequence[Start]) -> "list[ModelReading]":
        return [ModelReading(self._lm, start) for start in starts]

    def feed(self, readings: "Sequence[ModelReading]", tokens: Sequence[int]) -> None:
        for reading, token in zip(readings, tokens, strict=True):
            reading.feed([token])


class ModelReading:
    """One request, the memories injected."""

    logits: Tensor

    def __init__(self, lm: LanguageModel, start: Start) -> None:
        self._lm, self._memories, self._length = lm, start.memories, 0
        self._cache = DynamicCache(config=lm.model.config.get_text_config())
        self._shares = start.shares
        self.feed(list(start.prompt))

    @torch.no_grad()
    def feed(self, ids: list[int]) -> None:
        lm, memories, n = self._lm, self._memories, len(ids)
        if memories is None:
            places = torch.arange(self._length, self._length + n, device=lm.device)[None]
        else:
            places = memories.positions(n, self._length)
        self._length += n
        with nullcontext() if memories is None else injected(lm.model, memories, self._shares):
            logits: Tensor = lm.model(
                input_ids=torch.tensor([ids], device=lm.device),
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                # As an index, not as the number 1: the slice that a number makes has strides with
                # which bfloat16's vocabulary product takes 78 ms instead of 2 (decisions/0004).
                logits_to_keep=torch.tensor([n - 1], device=lm.device),
            ).logits
        self.logits = logits[0, -1].float()
