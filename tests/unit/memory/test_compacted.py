"""A compacted memory is plain attention over its entries, with its log-bias as a mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.kv import ABSENT, KV
from app.memory.model.load import LanguageModel
from app.memory.shares import Shares
from tests.unit.memory.families import CHUNKS, LIVE, PREFIX, lm_of, read, tiny


def thinned(kv: KV, keep: int, seed: int) -> KV:
    """Other tokens in each head, a log-bias, entries and a whole layer that are not there."""
    torch.manual_seed(seed)
    kept = torch.rand(kv.keys.shape[:3]).argsort(dim=-1)[..., :keep]
    wide = kept[..., None].expand(-1, -1, -1, kv.keys.shape[-1])
    bias = torch.randn(kept.shape)
    bias[:, 0, 0] = -torch.inf
    bias[1] = ABSENT
    return KV(kv.keys.gather(2, wide), kv.values.gather(2, wide), bias, kept, kv.entries)


@contextmanager
def masked(model: Any, masks: list[Tensor]) -> Iterator[None]:
    """The model's own eager attention, each layer with its mask (1, heads, n, entries + n)."""
    hooks = []
    for module in model.modules():
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):

            def change(own: Any, args: Any, kwargs: Any) -> Any:
                return args, kwargs | {"attention_mask": masks[own.layer_idx]}

            hooks.append(module.register_forward_pre_hook(change, with_kwargs=True))
    assert len(hooks) == len(masks)
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
        for hook in hooks:
            hook.remove()


def reference(lm: LanguageModel, encoder: Encoder, memories: list[KV]) -> Tensor:
    """Logits of LIVE; entry by entry, head by head, without anything that composes or injects."""
    config, n = lm.model.config, len(LIVE)
    group = config.num_attention_heads // encoder.prefix.keys.shape[1]
    placed, place = [(encoder.prefix, 0)], encoder.prefix.entries
    for kv in memories:
        placed.append((kv, place))
        place += kv.length
    types = getattr(config, "layer_types", None)
    cache, masks = DynamicCache(), []
    for layer in range(config.num_hidden_layers):
        window = getattr(config, "sliding_window", None)
        if types and types[layer] == "full_attention":
            window = None
        keys, values, columns = [], [], []
        for kv, at in placed:
            shape = kv.keys.shape[:3]
            offsets = torch.arange(kv.entries).expand(shape) if kv.offsets is None else kv.offsets
            bias = torch.zeros(shape) if kv.bias is None else kv.bias
            for entry in range(kv.entries):
                turned, column = [], []
                for head in range(shape[1]):
                    where = at + int(offsets[layer, head, entry])
                    own = kv.keys[:, None, head : head + 1, entry : entry + 1]
                    turned.append(lm.rotary.rotate(own, torch.tensor([[where]]))[layer, 0, 0])
                    seen = bias[layer, head, entry].clamp_min(ABSENT).repeat(n)
                    if window is not None:
                        seen[torch.arange(place, place + n) - where >= window] = ABSENT
                    column += [seen] * group
                keys.append(torch.stack(turned))
                values.append(kv.values[layer, :, entry : entry + 1])
                columns.append(torch.stack(column))
        cache.update(torch.cat(keys, 1)[None], torch.cat(values, 1)[None], layer)
        far = torch.arange(n)[:, None] - torch.arange(n)
        hidden = far < 0 if window is None else (far < 0) | (far >= window)
        own_mask = torch.zeros(n, n).masked_fill(hidden, ABSENT).expand(len(columns[0]), n, n)
        masks.append(torch.cat([torch.stack(columns, -1), own_mask], -1)[None])
    with torch.no_grad(), masked(lm.model, masks):
        return lm.model(
            input_ids=torch.tensor([LIVE]),
            position_ids=torch.arange(place, place + n)[None],
            past_key_values=cache,
        ).logits[0]


def test_dense_and_compacted_memories_equal_plain_attention_over_their_entries(
    lm: LanguageModel,
) -> None:
    encoder = Encoder(lm, PREFIX)
    a, b, c = encoder.encode(CHUNKS)
    requests = [[thinned(a, 3, seed=1), b, thinned(c, 4, seed=2)], [c], [thinned(a, 2, seed=3)]]
    composed = compose(requests, lm.rotary, encoder.prefix)
    together = read(lm, composed, [LIVE] * len(requests))
    for memories, got in zip(requests, together, strict=True):
        assert (got - reference(lm, encoder, memories)).abs().max() < 1e-3


def test_all_tokens_in_another_order_are_the_dense_memory(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    (dense,) = encoder.encode([CHUNKS[2]])
    torch.manual_seed(0)
    order = torch.rand(dense.keys.shape[:3]).argsort(dim=-1)
    wide = order[..., None].expand_as(dense.keys)
    mixed = KV(dense.keys.gather(2, wide), dense.values.gather(2, wide), offsets=order)
    got, expected = (
        read(lm, compose([[kv]], lm.rotary, encoder.prefix), [LIVE]) for kv in (mixed, dense)
    )
    assert (got - expected).abs().max() < 1e-4


def test_a_memory_absent_from_every_layer_is_read_as_the_prefix_alone() -> None:
    lm = lm_of(tiny("llama"))
    encoder = Encoder(lm, PREFIX)
    (dense,) = encoder.encode([CHUNKS[0]])
    nowhere = KV(dense.keys, dense.values, torch.full(dense.keys.shape[:3], -torch.inf))
    absent = compose([[nowhere]], lm.rotary, encoder.prefix)
    shares = Shares()
    got = read(lm, absent, [LIVE], shares)
    bare = compose([[]], lm.rotary, encoder.prefix)
    bare.start.copy_(absent.start)
    assert (got - read(lm, bare, [LIVE])).abs().max() < 1e-5
    assert shares.of(absent, 0, 1) == [0.0]
    assert absent.entries(0) == len(PREFIX)


def test_dense_memories_of_equal_size_bring_no_bias_and_no_places_per_head() -> None:
    lm = lm_of(tiny("llama"))
    encoder = Encoder(lm, PREFIX)
    a, b, c = encoder.encode(CHUNKS)
    together = compose([[a, b], [b, a]], lm.rotary, encoder.prefix)
    assert together.bias is None
    assert together.places.shape == (1, 2, 1, 12)
    padded = compose([[a, b], [c]], lm.rotary, encoder.prefix)
    assert padded.bias is not None
    assert padded.bias.shape == padded.places.shape == (1, 2, 1, 12)
    assert [padded.entries(i) for i in range(2)] == [12, 11]


def test_parts_that_do_not_belong_together_are_refused() -> None:
    keys = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"bias of shape \(2, 1, 2\)"):
        KV(keys, keys, torch.zeros(2, 1, 2))
    with pytest.raises(ValueError, match="values"):
        KV(keys, keys[:1])
