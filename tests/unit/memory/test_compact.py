"""Scorers and compaction against slow, plain references: head by head, token by token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from app.errors import UsageError
from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.kv import ABSENT, KV
from app.memory.model.load import LanguageModel
from app.memory.sparse.compact import Compactor
from app.memory.sparse.score import SCORERS, Batch
from tests.unit.memory.families import LIVE, PREFIX, lm_of, read, tiny

CHUNKS = [
    [10, 11, 12, 13, 14, 15, 16, 17],
    [20, 21, 22],
    [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41],
]
SOME = ["llama", "gemma2", "gpt-neox, partial rotary", "smollm3, layers without rotary"]


@pytest.fixture(params=SOME)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return lm_of(tiny(request.param))


def encoded(lm: LanguageModel) -> tuple[Encoder, list[KV]]:
    encoder = Encoder(lm, PREFIX)
    return encoder, encoder.encode(CHUNKS)


def attentions(lm: LanguageModel, ids: list[int], **options: Any) -> list[Tensor]:
    """Each layer's attention (heads, n, all) of a plain eager forward pass."""
    usual = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = lm.model(torch.tensor([ids]), output_attentions=True, **options)
    finally:
        lm.model.set_attn_implementation(usual)
    return [layer[0] for layer in out.attentions]


def test_reconstruction_is_the_strongest_attention_of_a_plain_pass_that_repeats_the_chunk(
    lm: LanguageModel,
) -> None:
    encoder, memories = encoded(lm)
    scores = SCORERS["reconstruction"].score(Batch(encoder, CHUNKS, memories))
    for index, chunk in enumerate(CHUNKS):
        p, n = len(PREFIX), len(chunk)
        for layer, weights in enumerate(attentions(lm, [*PREFIX, *chunk, *chunk])):
            group = weights.shape[0] // scores.shape[2]
            for head in range(scores.shape[2]):
                own = weights[head * group : (head + 1) * group, p + n :, p : p + n]
                expected = torch.stack([own[:, :, j].max() for j in range(n)])
                assert (scores[layer, index, head, :n] - expected).abs().max() < 1e-4


def first_layer(lm: LanguageModel, chunk: list[int]) -> tuple[Tensor, Tensor]:
    """Un-rotated queries and keys of a first layer by its weights, (heads, n, head_dim)."""
    inner = lm.model.model
    states = inner.layers[0].input_layernorm(inner.embed_tokens(torch.tensor(chunk)))
    attention = inner.layers[0].self_attn
    queries, keys = (
        project(states).view(len(chunk), -1, attention.head_dim).transpose(0, 1)
        for project in (attention.q_proj, attention.k_proj)
    )
    return queries, keys


def test_column_sums_follow_memory3_formula() -> None:
    lm = lm_of(tiny("llama"))
    encoder, memories = encoded(lm)
    scores = SCORERS["column-sums"].score(Batch(encoder, CHUNKS, memories))
    for index, chunk in enumerate(CHUNKS):
        queries, keys = first_layer(lm, chunk)
        for head in range(2):
            expected = torch.zeros(len(chunk))
            for query in queries[2 * head : 2 * head + 2]:
                for token in query:
                    expected += (keys[head] @ token / math.sqrt(token.numel())).softmax(-1) / 2
            assert (scores[0, index, head, : len(chunk)] - expected).abs().max() < 1e-4


def test_expected_attention_follows_its_formula() -> None:
    lm = lm_of(tiny("llama"))
    encoder, memories = encoded(lm)
    scores = SCORERS["expected-attention"].score(Batch(encoder, CHUNKS, memories))

    def turned(x: Tensor, place: int) -> Tensor:
        """One vector of the first layer at a position; complex numbers instead of halves."""
        half = x.numel() // 2
        angles = place * 10_000.0 ** (-torch.arange(half) / half)
        both = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), angles)
        return torch.cat([both.real, both.imag])

    for index, chunk in enumerate(CHUNKS):
        queries, keys = first_layer(lm, chunk)
        dim, n = keys.shape[-1], len(chunk)
        mean_turn = torch.stack(
            [
                torch.stack([turned(axis, ahead) for axis in torch.eye(dim)], dim=1)
                for ahead in range(0, 512, 8)
            ]
        ).mean(0)
        for head in range(2):
            expected = torch.zeros(n)
            for own in queries[2 * head : 2 * head + 2]:
                mean = mean_turn @ own.mean(0)
                spread = mean_turn @ own.T.cov(correction=0) @ mean_turn.T
                logits = torch.zeros(n)
                for j in range(n):
                    key = turned(keys[head, j], j - n)
                    logits[j] = key @ mean / math.sqrt(dim) + key @ spread @ key / (2 * dim)
                expected += logits.softmax(-1) / 2
            expected *= memories[index].values[0, head].norm(dim=-1)
            assert (scores[0, index, head, :n] - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", list(SCORERS))
def test_scores_do_not_depend_on_the_batch(lm: LanguageModel, name: str) -> None:
    encoder, memories = encoded(lm)
    together = SCORERS[name].score(Batch(encoder, CHUNKS, memories))
    for index, (chunk, kv) in enumerate(zip(CHUNKS, memories, strict=True)):
        alone = SCORERS[name].score(Batch(encoder, [chunk], [kv]))
        assert alone.shape == (4, 1, kv.keys.shape[1], len(chunk))
        assert torch.allclose(together[:, index, :, : len(chunk)], alone[:, 0], atol=1e-4)


@pytest.mark.parametrize("name", list(SCORERS))
def test_each_head_keeps_its_best_tokens_where_they_were(lm: LanguageModel, name: str) -> None:
    encoder, memories = encoded(lm)
    compacted = Compactor.parse(f"{name}:0.5").compact(encoder, CHUNKS, memories)
    scores = SCORERS[name].score(Batch(encoder, CHUNKS, memories))
    for index, (kv, dense) in enumerate(zip(compacted, memories, strict=True)):
        n = dense.entries
        assert (kv.entries, kv.length, kv.bias) == (math.ceil(n / 2), n, None)
        for layer in range(dense.keys.shape[0]):
            for head in range(dense.keys.shape[1]):
                best = scores[layer, index, head, :n].topk(kv.entries).indices.sort().values
                assert torch.equal(kv.offsets[layer, head], best)
                assert torch.equal(kv.keys[layer, head], dense.keys[layer, head, best])
                assert torch.equal(kv.values[layer, head], dense.values[layer, head, best])


def test_heads_share_a_total_and_keep_a_floor() -> None:
    encoder, memories = encoded(lm_of(tiny("llama")))
    compacted = Compactor.parse("reconstruction:0.5:0.25").compact(encoder, CHUNKS, memories)
    scores = SCORERS["reconstruction"].score(Batch(encoder, CHUNKS, memories))
    for index, (kv, dense) in enumerate(zip(compacted, memories, strict=True)):
        n, heads = dense.entries, 8
        there = torch.ones(4, 2, kv.entries) > 0 if kv.bias is None else kv.bias > ABSENT
        assert int(there.sum()) == math.ceil(0.5 * n * heads)
        assert int(there.sum(-1).min()) >= math.ceil(0.25 * n)
        floor, rest = set(), []
        for layer in range(4):
            for head in range(2):
                order = scores[layer, index, head, :n].argsort(descending=True).tolist()
                cut = math.ceil(0.25 * n)
                floor |= {(layer, head, j) for j in order[:cut]}
                rest += [
                    (float(scores[layer, index, head, j]), layer, head, j) for j in order[cut:]
                ]
        more = sorted(rest, reverse=True)[: math.ceil(0.5 * n * heads) - len(floor)]
        expected = floor | {one[1:] for one in more}
        offsets = torch.arange(n).expand(4, 2, n) if kv.offsets is None else kv.offsets
        got = {(l, h, int(offsets[l, h, e])) for l, h, e in there.nonzero().tolist()}  # noqa: E741
        assert got == expected
        assert not kv.keys[~there].any()


def test_layers_without_memory_read_nothing_and_the_others_everything() -> None:
    encoder, memories = encoded(lm_of(tiny("llama")))
    for kv, dense in zip(
        Compactor.parse("layers:0-0,2-3").compact(encoder, CHUNKS, memories), memories, strict=True
    ):
        assert (kv.bias[1] == ABSENT).all()
        assert not kv.bias[[0, 2, 3]].any()
        assert torch.equal(kv.keys[[0, 2, 3]], dense.keys[[0, 2, 3]])
        assert not kv.keys[1].any()
        assert kv.offsets is None


def outputs(lm: LanguageModel, encoder: Encoder, kv: KV, chunk: list[int]) -> list[Tensor]:
    """Each layer's mass and output of the repeat queries over a memory, by loops over heads."""
    dense = encoder.encode([chunk])[0]
    cache = DynamicCache()
    plain = lm.model(torch.tensor([[*PREFIX, *chunk]]), past_key_values=cache)
    assert plain.logits is not None
    found = []
    batch = Batch(encoder, [chunk], [dense])
    for layer, queries in enumerate(batch.repetition.queries):
        rotated = cache.layers[layer].keys[0, :, len(PREFIX) :]
        for head in range(dense.keys.shape[1]):
            rows = batch.grouped(queries)[0, head].flatten(0, 1)
            whole = (rows @ rotated[head].T).exp()
            offsets = range(kv.entries) if kv.offsets is None else kv.offsets[layer, head].tolist()
            bias = torch.zeros(kv.entries) if kv.bias is None else kv.bias[layer, head]
            left = torch.stack([whole[:, j] for j in offsets], dim=1) * bias.exp()
            mass = left.sum(1) / whole.sum(1)
            out = left / left.sum(1, keepdim=True) @ kv.values[layer, head]
            target = whole / whole.sum(1, keepdim=True) @ dense.values[layer, head]
            found += [torch.stack([(mass - 1).square().mean(), (out - target).square().mean()])]
    return found


def test_matching_brings_mass_and_output_nearer_to_the_whole_memory_in_every_head() -> None:
    lm = lm_of(tiny("llama"))
    encoder, memories = encoded(lm)
    fewer, fitted = (
        Compactor.parse(text).compact(encoder, CHUNKS, memories)
        for text in ("reconstruction:0.5", "reconstruction:0.5+match")
    )
    for chunk, before, after in zip(CHUNKS, fewer, fitted, strict=True):
        assert torch.equal(before.offsets, after.offsets)
        assert torch.equal(before.keys, after.keys)
        assert after.bias.abs().max() <= 3.0 + 1e-5
        for worse, better in zip(
            outputs(lm, encoder, before, chunk), outputs(lm, encoder, after, chunk), strict=True
        ):
            assert (better <= worse + 1e-6).all()
            assert better[0] < worse[0]


def test_log_bias_is_the_bounded_least_squares_solution() -> None:
    """No step along a free coordinate, and no step into the box at a bound, makes it better."""
    torch.manual_seed(0)
    part: Any = Compactor.parse("match").parts[0]
    shares = torch.rand(1, 2, 30, 4) * torch.tensor([0.3, 0.1, 0.02, 0.2])
    asked = torch.ones(1, 1, 30, 1)
    many = type(part)(steps=3000)._mass(shares.double(), asked.double())
    slope = (shares.double().transpose(-1, -2) @ (shares.double() @ many[..., None] - 1))[..., 0]
    free = (many > math.exp(-3) + 1e-6) & (many < math.exp(3) - 1e-6)
    assert slope[free].abs().max() < 1e-3
    assert (slope[many >= math.exp(3) - 1e-6] <= 1e-3).all()
    assert (slope[many <= math.exp(-3) + 1e-6] >= -1e-3).all()


def test_matching_all_tokens_changes_nothing_that_is_read(lm: LanguageModel) -> None:
    encoder, memories = encoded(lm)
    matched = Compactor.parse("match").compact(encoder, CHUNKS, memories)
    before, after = (
        read(lm, compose([kv], lm.rotary, encoder.prefix), [LIVE]) for kv in (memories, matched)
    )
    assert (before - after).abs().max() < 1e-2


@pytest.mark.parametrize(
    "text", ["reconstruction:0.5+match", "random:0.4", "layers:1-3+column-sums:0.6:0.2+match"]
)
def test_a_chunk_is_compacted_alike_alone_and_in_a_batch(lm: LanguageModel, text: str) -> None:
    encoder, memories = encoded(lm)
    together = Compactor.parse(text).compact(encoder, CHUNKS, memories)
    for kv, chunk, dense in zip(together, CHUNKS, memories, strict=True):
        (alone,) = Compactor.parse(text).compact(encoder, [chunk], [dense])
        assert kv.keys.shape == alone.keys.shape
        logits = [
            read(lm, compose([[one]], lm.rotary, encoder.prefix), [LIVE]) for one in (kv, alone)
        ]
        assert (logits[0] - logits[1]).abs().max() < 1e-2


def test_compaction_leaves_the_dense_memories_as_they_are() -> None:
    encoder, memories = encoded(lm_of(tiny("llama")))
    before = [(kv.keys.clone(), kv.values.clone()) for kv in memories]
    Compactor.parse("layers:1-2+reconstruction:0.5:0.1+match").compact(encoder, CHUNKS, memories)
    for kv, (keys, values) in zip(memories, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@pytest.mark.parametrize(
    "text",
    [
        "all",
        "layers:3-26",
        "layers:0-4,20-29+reconstruction:0.5+match",
        "random:0.25:0.1",
        "match",
    ],
)
def test_a_pipeline_is_its_text(text: str) -> None:
    assert str(Compactor.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "layers:5-3",
        "layers:a",
        "random",
        "random:0",
        "random:1.5",
        "random:nan",
        "random:0.5:0.6",
        "random:0.5:0.1:0.1",
        "match:2",
        "all+match",
        "column-sums:0.5+",
    ],
)
def test_a_text_that_is_no_pipeline_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Compactor.parse(text)


def test_layers_that_the_model_has_not_are_refused() -> None:
    encoder, memories = encoded(lm_of(tiny("llama")))
    with pytest.raises(UsageError, match="layers are 0-3"):
        Compactor.parse("layers:3-26").compact(encoder, CHUNKS, memories)
