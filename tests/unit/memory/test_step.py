"""The compiled step, held to a decoder of the Llama shape written plainly, in float64."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.memory.decode.flat import Flat, FlatReading, Start
from app.memory.decode.native import Native
from app.memory.decode.packed import Bits, pack_weights
from app.memory.kv import ABSENT
from app.memory.model.load import LanguageModel
from tests.unit.memory.families import made, of_threads, uneven

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "two heads a group, an epsilon that counts": (
        "llama",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 0.5},
    ),
    "a head alone, biases everywhere": (
        "llama",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "five heads a group, biases of q, k and v": (
        "qwen2",
        {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 160},
    ),
    "three heads a group, heads normalised": (
        "qwen3",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 0.1},
    ),
    "eight heads a group, a layer without rotary": (
        "smollm3",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "hidden_size": 128,
            "no_rope_layer_interval": 2,
        },
    ),
    "widths that four bits do not fit": (
        "llama",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "hidden_size": 48,
            "intermediate_size": 80,
        },
    ),
}
SMALL = {
    "vocab_size": 203,
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# (entries before the token, how many of them have a bias): either side of the blocks of 128.
CACHES = [
    (0, 0),
    (1, 0),
    (7, 7),
    (126, 3),
    (127, 127),
    (128, 0),
    (129, 129),
    (300, 200),
    (513, 512),
]


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lm_of(shape: str) -> LanguageModel:
    family, options = SHAPES[shape]
    config = CONFIG_MAPPING[family](**{**SMALL, **options})
    return LanguageModel(uneven(made(config)), tokenizer=None)


def reading_of(flat: Flat, entries: int, biased: int, loud: float = 1.0) -> FlatReading:
    """A request with so many entries, of which so many have a bias and some are absent.

    loud: how large its keys are.
    """
    random = torch.Generator().manual_seed(entries)
    reading = FlatReading(flat, Start([0] * entries, 2), torch.bfloat16)
    for cache, size in ((reading.keys, loud), (reading.values, 1.0)):
        cache.copy_(torch.randn(cache.shape, generator=random) * size)
    reading.entries, reading.length = biased, entries
    if biased:
        shape = (*reading.keys.shape[:2], biased)
        bias = torch.randn(shape, generator=random)
        reading.bias = bias.masked_fill(torch.rand(shape, generator=random) < 0.2, ABSENT)
    return reading


class Plain:
    """A model as its modules say, with the weights that packing makes of theirs."""

    def __init__(self, lm: LanguageModel, bits: Bits) -> None:
        self.lm, self.dim = lm, lm.decoder.layers[0].self_attn.head_dim
        self.weights = {
            module: pack_weights(module.weight, bits).dense().double()
            for module in lm.model.modules()
            if isinstance(module, nn.Linear)
        }

    def product(self, linear: nn.Linear, x: Tensor) -> Tensor:
        y = self.weights[linear] @ x
        return y if linear.bias is None else y + linear.bias.double()

    def norm(self, norm: Any, x: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x / (mean + norm.variance_epsilon).sqrt() * norm.weight.double()

    def turn(self, x: Tensor, place: int) -> Tensor:
        """Pairs (i, i + dim / 2) of heads (heads, dim), each by its own angle."""
        cos, sin = self.lm.decoder.rotary_emb(torch.empty(0), torch.tensor([[place]]))
        half = self.dim // 2
        pairs = torch.complex(x[:, :half], x[:, half:])
        pairs = pairs * torch.complex(cos[0, 0, :half].double(), sin[0, 0, :half].double())
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def logits(self, reading: FlatReading, token: int) -> Tensor:
        """After `token`, whose keys and values the reading has got from the step: they are held to
        what they should be, then read as they are, so that rounding to bfloat16 counts once."""
        entries = reading.length - 1
        x = self.lm.decoder.embed_tokens.weight[token].double()
        for index, layer in enumerate(self.lm.decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            normed = self.norm(layer.input_layernorm, x)
            q, k, v = (
                self.product(part, normed).view(-1, self.dim)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):
                q, k = self.norm(attention.q_norm, q), self.norm(attention.k_norm, k)
            if getattr(attention, "use_rope", True):
                place = entries - reading.entries
                q, k = self.turn(q, place), self.turn(k, place)
            keys, values = (
                cache[index, :, : entries + 1].double() for cache in (reading.keys, reading.values)
            )
            torch.testing.assert_close(keys[:, -1], k, rtol=2**-8, atol=1e-5)
            torch.testing.assert_close(values[:, -1], v, rtol=2**-8, atol=1e-5)
            x = x + self.product(attention.o_proj, self.mixed(reading, index, q, keys, values))
            normed = self.norm(layer.post_attention_layernorm, x)
            gate, up = self.product(mlp.gate_proj, normed), self.product(mlp.up_proj, normed)
            x = x + self.product(mlp.down_proj, gate * gate.sigmoid() * up)
        return self.product(self.lm.model.lm_head, self.norm(self.lm.decoder.norm, x))

    def mixed(
        self, reading: FlatReading, index: int, q: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        heads = []
        for number, query in enumerate(q):
            head = number * len(keys) // len(q)
            scores = keys[head] @ query * self.dim**-0.5
            if reading.bias is not None:
                scores[: reading.entries] += reading.bias[index, head]
            heads.append(scores.softmax(-1) @ values[head])
        return torch.cat(heads)


@torch.no_grad()
def require_same(
    lm: LanguageModel, native: Native, bits: Bits, readings: Sequence[FlatReading]
) -> None:
    """Feed a token to each request, twice, and hold the logits to the plain ones."""
    plain = Plain(lm, bits)
    for first in (11, 50):
        tokens = [first + i for i in range(len(readings))]
        before = [(reading.keys.clone(), reading.values.clone()) for reading in readings]
        lengths = [reading.length for reading in readings]
        got = native.step(readings, tokens)
        for i, (reading, token) in enumerate(zip(readings, tokens, strict=True)):
            assert reading.length == lengths[i] + 1
            for cache, old in zip((reading.keys, reading.values), before[i], strict=True):
                old[:, :, lengths[i]] = cache[:, :, lengths[i]]
                assert torch.equal(cache, old), "more was written than the token's entry"
            expected = plain.logits(reading, token)
            assert (got[i] - expected).abs().max() < 1e-5 * expected.abs().max(), (i, first)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_step_gives_the_logits_of_the_rounded_weights(
    bits: Bits, shape: str, folder: Path
) -> None:
    """Requests of every size in one batch, larger than what a product takes at a time."""
    lm = lm_of(shape)
    native = Native(Flat(lm), bits, folder)
    require_same(lm, native, bits, [reading_of(native.flat, *cache) for cache in CACHES])
    require_same(lm, native, bits, [reading_of(native.flat, 5, 0)])


def test_scores_beyond_what_a_float_can_exponentiate_are_read(folder: Path) -> None:
    """Whichever entry has the highest one, in whichever block it stands."""
    lm = lm_of("two heads a group, an epsilon that counts")
    native = Native(Flat(lm), "int4", folder)
    require_same(
        lm, native, "int4", [reading_of(native.flat, n, n, loud=400.0) for n in (5, 140, 300)]
    )


def test_a_bias_of_everything_but_one_entry_leaves_that_one(folder: Path) -> None:
    lm = lm_of("three heads a group, heads normalised")
    native = Native(Flat(lm), "int8", folder)
    readings = [reading_of(native.flat, 260, 260) for _ in range(3)]
    for reading, kept in zip(readings, (0, 130, 259), strict=True):
        assert reading.bias is not None
        reading.bias.fill_(ABSENT)[:, :, kept] = 3.0
    require_same(lm, native, "int8", readings)


@torch.no_grad()
def test_values_are_rounded_to_the_nearest_even_bfloat16(folder: Path) -> None:
    """Ties are made with the bias alone; a value between is nearer to one side."""
    lm = lm_of("a head alone, biases everywhere")
    exact = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, -1 - 3 * 2**-8, 1 + 2**-9, 3.0])
    for layer in lm.decoder.layers:
        layer.self_attn.v_proj.weight.zero_()
        layer.self_attn.v_proj.bias.copy_(exact.repeat(3)[:16])
    native = Native(Flat(lm), "int8", folder)
    reading = reading_of(native.flat, 3, 0)
    native.step([reading], [11])
    assert torch.equal(
        reading.values[:, :, 3].reshape(3, 16), exact.bfloat16().repeat(3)[:16].expand(3, 16)
    )


def test_threads_compute_the_same_bit_for_bit(shape: str, folder: Path) -> None:
    lm = lm_of(shape)
    native, found = Native(Flat(lm), "int4", folder), []
    for threads in (1, 2, 3, 7):
        with of_threads(threads):
            readings = [reading_of(native.flat, *cache) for cache in CACHES]
            steps = [native.step(readings, range(20, 20 + len(readings))) for _ in range(2)]
        found.append(torch.stack(steps))
    assert all(torch.equal(found[0], other) for other in found[1:])
