"""Chunk tokens -> dense KV with keys free of position (Memory3 section 3.2, APE's shared prefix).

Every chunk is encoded by itself behind the profile's shared prefix, which takes the attention
sink; only the chunk's own KV is kept. The prefix is run once and read as a memory by all chunks.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.attention import injected
from app.memory.compose import compose
from app.memory.kv import KV
from app.memory.model import LanguageModel


class Encoder:
    """Encodes chunks with one model behind one prefix."""

    def __init__(self, lm: LanguageModel, prefix: Sequence[int]) -> None:
        """`prefix`: token ids in front of every chunk; may be empty."""
        self.lm = lm
        self.prefix: KV | None = self._encode_prefix(list(prefix)) if prefix else None

    @torch.no_grad()
    def encode(self, chunks: Sequence[Sequence[int]], batch_tokens: int = 2048) -> list[KV]:
        """Token ids of each chunk -> its KV, (layers, kv_heads, len(chunk), head_dim).

        Chunks of similar length share a forward pass of at most `batch_tokens` padded tokens.
        Raises ValueError for an empty chunk.
        """
        if any(not chunk for chunk in chunks):
            raise ValueError("a chunk without tokens cannot be encoded")
        found: list[KV | None] = [None] * len(chunks)
        for batch in _batches([len(chunk) for chunk in chunks], batch_tokens):
            for index, kv in zip(batch, self._forward([chunks[i] for i in batch]), strict=True):
                found[index] = kv
        return [kv for kv in found if kv is not None]

    def _forward(self, chunks: Sequence[Sequence[int]]) -> list[KV]:
        ids, mask = _padded(chunks, self.lm.device)
        cache = DynamicCache()
        if self.prefix is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(len(chunks), -1)
            self._run(ids, mask, positions, cache)
        else:
            shared = compose([[]] * len(chunks), self.lm.rotary, self.prefix)
            positions = shared.positions(ids.shape[1])
            with injected(self.lm.model, shared):
                self._run(ids, mask, positions, cache)
        keys, values = _stacked(cache)
        keys = self.lm.rotary.unrotate(keys, positions)
        return [
            KV(keys[:, i, :, : len(c)].clone(), values[:, i, :, : len(c)].clone())
            for i, c in enumerate(chunks)
        ]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> None:
        self.lm.decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )

    @torch.no_grad()
    def _encode_prefix(self, prefix: list[int]) -> KV:
        self.prefix = None
        return self._forward([prefix])[0]


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length whose padded size stays within the budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(chunks: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(chunk) for chunk in chunks)
    ids = torch.zeros(len(chunks), width, dtype=torch.long)
    mask = torch.zeros(len(chunks), width, dtype=torch.long)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk)] = torch.tensor(chunk)
        mask[row, : len(chunk)] = 1
    return ids.to(device), mask.to(device)


def _stacked(cache: DynamicCache) -> tuple[Tensor, Tensor]:
    keys = torch.stack([layer.keys for layer in cache.layers])
    values = torch.stack([layer.values for layer in cache.layers])
    return keys, values
