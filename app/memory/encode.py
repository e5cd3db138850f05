"""Chunk tokens -> dense KV with keys free of position (Memory3 section 3.2, APE's shared prefix).

Every chunk stands by itself behind the profile's shared prefix, which takes the attention sink and
is run once; only the chunk's own KV is kept.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.attention import without_memories
from app.memory.kv import KV
from app.memory.model.load import LanguageModel

BATCH_TOKENS = 2048
_WINDOW_BATCHES = 2


class Encoder:
    """Encodes chunks with one model behind one prefix."""

    def __init__(self, lm: LanguageModel, prefix: Sequence[int]) -> None:
        """`prefix`: token ids in front of every chunk; may be empty."""
        self.lm = lm
        self.prefix: KV | None = None
        self._front: list[tuple[Tensor, Tensor]] = []
        if prefix:
            self.prefix = self.encode([list(prefix)])[0]
            places = torch.arange(len(prefix), device=lm.device)[None]
            keys = lm.rotary.rotate(self.prefix.keys[:, None], places)
            self._front = list(zip(keys, self.prefix.values[:, None], strict=True))

    @torch.no_grad()
    def encode(self, chunks: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> list[KV]:
        """Token ids of each chunk -> its KV, (layers, kv_heads, len(chunk), head_dim).

        A memory depends on prefix and chunk alone. Chunks of similar length share a forward pass
        of at most `batch_tokens` padded tokens. Raises ValueError for an empty chunk.
        """
        if any(not chunk for chunk in chunks):
            raise ValueError("a chunk without tokens cannot be encoded")
        found: list[KV | None] = [None] * len(chunks)
        for batch in batches([len(chunk) for chunk in chunks], batch_tokens):
            layers = self.forward([chunks[i] for i in batch]).layers
            end = layers[0].keys.shape[2]
            start = 0 if self.prefix is None else self.prefix.entries
            places = torch.arange(start, end, device=self.lm.device)[None]
            keys = self.lm.rotary.unrotate(
                [layer.keys[:, :, start:] for layer in layers], places.expand(len(batch), -1)
            )
            values = torch.stack([layer.values[:, :, start:] for layer in layers])
            for number, index in enumerate(batch):
                own = (slice(None), number, slice(None), slice(len(chunks[index])))
                found[index] = KV(keys[own].clone(), values[own].clone())
        return [kv for kv in found if kv is not None]

    def stream(
        self, chunks: Iterable[Sequence[int]], batch_tokens: int = BATCH_TOKENS
    ) -> Iterator[KV]:
        """Token ids of any number of chunks -> their KV as `encode` gives it, in order.

        Holds a few batches of `batch_tokens` at a time. Raises ValueError for an empty chunk.
        """
        window: list[Sequence[int]] = []
        tokens = 0
        for chunk in chunks:
            window.append(chunk)
            tokens += len(chunk)
            if tokens >= _WINDOW_BATCHES * batch_tokens:
                yield from self.encode(window, batch_tokens)
                window, tokens = [], 0
        yield from self.encode(window, batch_tokens)

    @torch.no_grad()
    def forward(self, rows: Sequence[Sequence[int]]) -> DynamicCache:
        """Run rows of token ids behind the prefix, padded at the end; logits are not computed.

        Returns the cache of prefix and rows: keys (batch, kv_heads, prefix + width, head_dim) a
        layer, rotated to their positions 0 .. prefix + width - 1.
        """
        ids = padded(rows, self.lm.device)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._front):
            shape = (len(rows), *keys.shape[1:])
            cache.update(keys.expand(shape), values.expand(shape), layer)
        before = cache.get_seq_length()
        places = torch.arange(before, before + ids.shape[1], device=ids.device)
        # What stands at the end is seen by nothing before it: padding needs no mask.
        with without_memories(self.lm.model):
            self.lm.decoder(
                input_ids=ids,
                position_ids=places.expand(len(rows), -1),
                past_key_values=cache,
                use_cache=True,
            )
        return cache


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length whose padded size stays within the budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids (rows, width), zeros at the end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
