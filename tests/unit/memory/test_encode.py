"""What a chunk's memory depends on: itself and the prefix."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel
from tests.unit.memory.families import PREFIX, lm_of, tiny

CHUNKS = [[10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36], [50, 51], [60, 61, 62]]


def plain(lm: LanguageModel, ids: list[int], last: int) -> tuple[Tensor, Tensor]:
    """Un-rotated keys and values of the last tokens of a plain forward pass."""
    cache = DynamicCache()
    with torch.no_grad():
        lm.model(torch.tensor([ids]), past_key_values=cache)
    keys = torch.stack([layer.keys for layer in cache.layers])
    values = torch.stack([layer.values for layer in cache.layers])
    keys = lm.rotary.unrotate(keys, torch.arange(len(ids))[None])
    return keys[:, 0, :, -last:], values[:, 0, :, -last:]


def same(kv: KV, keys: Tensor, values: Tensor) -> bool:
    return bool((kv.keys - keys).abs().max() < 1e-3 and (kv.values - values).abs().max() < 1e-3)


def test_a_chunk_has_seen_the_prefix_and_nothing_else(lm: LanguageModel) -> None:
    for kv, chunk in zip(Encoder(lm, PREFIX).encode(CHUNKS), CHUNKS, strict=True):
        assert same(kv, *plain(lm, [*PREFIX, *chunk], len(chunk)))


def test_a_stream_is_read_no_further_than_a_few_batches_ahead() -> None:
    encoder = Encoder(lm_of(tiny("llama")), PREFIX)
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield CHUNKS[taken % len(CHUNKS)]

    stream = encoder.stream(endless(), batch_tokens=16)
    for given in range(1, 200):
        kv = next(stream)
        assert kv.entries == len(CHUNKS[given % len(CHUNKS)])
        assert taken - given < 3 * 16


def test_a_stream_gives_the_memories_of_its_chunks_in_order() -> None:
    encoder = Encoder(lm_of(tiny("llama")), PREFIX)
    chunks = CHUNKS * 5
    streamed = list(encoder.stream(iter(chunks), batch_tokens=16))
    for kv, chunk in zip(streamed, chunks, strict=True):
        assert same(kv, *plain(encoder.lm, [*PREFIX, *chunk], len(chunk)))


def test_a_chunk_without_tokens_is_refused() -> None:
    encoder = Encoder(lm_of(tiny("llama")), PREFIX)
    with pytest.raises(ValueError, match="without tokens"):
        encoder.encode([[1], []])
