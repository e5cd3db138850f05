"""The fast ways of decoding are held to transformers' modules with injected memories."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.errors import ModelError
from app.memory.compose import Memories, compose
from app.memory.decode.decoder import Decoder, ModelDecoder, decoder_of
from app.memory.decode.flat import Flat, FlatDecoder, Start
from app.memory.decode.native import Native, NativeDecoder
from app.memory.decode.packed import Bits, pack_weights
from app.memory.encode import Encoder
from app.memory.kv import ABSENT, KV
from app.memory.model.load import LanguageModel
from app.memory.shares import Shares
from tests.unit.memory.families import FAMILIES, made, tiny, uneven

FLAT = ["llama", "llama 3.1", "mistral", "qwen2", "qwen3", "smollm3, layers without rotary"]
PREFIX, CHUNKS = [3, 4, 5, 6], [[10, 11, 12, 13, 14], [20, 21, 22]]
PROMPT, MORE = [40, 41, 42, 43, 44], [50, 51, 52, 53]


def lm_of(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(uneven(tiny(family, dtype)), tokenizer=None)


def memories_of(lm: LanguageModel, chunks: Sequence[Sequence[int]] = CHUNKS) -> Memories:
    encoder = Encoder(lm, PREFIX)
    return compose([encoder.encode(chunks)], lm.rotary, encoder.prefix)


def weighted(lm: LanguageModel) -> Memories:
    """Memories whose entries differ from head to head: a log-bias, and some that are not there."""
    encoder = Encoder(lm, PREFIX)
    random = torch.Generator().manual_seed(0)
    stored = []
    for kv in encoder.encode(CHUNKS):
        bias = torch.randn(*kv.keys.shape[:3], generator=random)
        bias[1, 0, 0] = ABSENT
        stored.append(KV(kv.keys, kv.values, bias=bias))
    return compose([stored], lm.rotary, encoder.prefix)


@torch.no_grad()
def logits(decoder: Decoder, memories: Memories | None, prompt: list[int] = PROMPT) -> Tensor:
    """Of the prompt and of each token after it, (1 + 4, vocabulary)."""
    [reading] = decoder.read([Start(prompt, len(MORE), memories)])
    found = [reading.logits]
    for token in MORE:
        decoder.feed([reading], [token])
        found.append(reading.logits)
    return torch.stack(found)


def reference(lm: LanguageModel, memories: Memories | None) -> Tensor:
    return logits(ModelDecoder(lm), memories)


def flat(lm: LanguageModel) -> Decoder:
    return FlatDecoder(Flat(lm))


def divergence(exact: Tensor, rounded: Tensor) -> float:
    before, after = exact.log_softmax(-1), rounded.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("family", FLAT)
@pytest.mark.parametrize("chunks", [None, CHUNKS, CHUNKS[1:], []])
def test_flat_gives_the_logits_of_the_model(family: str, chunks: list[list[int]] | None) -> None:
    lm = lm_of(family)
    memories = None if chunks is None else memories_of(lm, chunks)
    assert (logits(flat(lm), memories) - reference(lm, memories)).abs().max() < 1e-4


@pytest.mark.parametrize("family", FLAT)
def test_flat_reads_a_bias_of_each_head(family: str) -> None:
    lm = lm_of(family)
    memories, plain = weighted(lm), memories_of(lm)
    got = logits(flat(lm), memories)
    assert (got - reference(lm, memories)).abs().max() < 1e-4
    assert (got - logits(flat(lm), plain)).abs().max() > 1e-2


def test_flat_reads_a_prompt_of_one_token() -> None:
    lm = lm_of("llama")
    memories = memories_of(lm)
    got = logits(flat(lm), memories, [40])
    expected = logits(ModelDecoder(lm), memories, [40])
    assert (got - expected).abs().max() < 1e-4


def test_flat_reports_the_same_shares_of_attention() -> None:
    lm = lm_of("qwen3")
    memories, found = memories_of(lm), []
    for decoder in (flat(lm), ModelDecoder(lm)):
        shares = Shares()
        [reading] = decoder.read([Start(PROMPT, 2, memories, shares)])
        found.append(shares.of(memories, 0, 2))
        decoder.feed([reading], [1])
        assert shares.of(memories, 0, 2) == found[-1]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert all(share > 0 for share in found[0])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(FLAT)))
def test_another_shape_is_left_to_transformers(family: str, folder: Path) -> None:
    lm = lm_of(family)
    with pytest.raises(ModelError):
        Flat(lm)
    memories = memories_of(lm)
    got = logits(decoder_of(lm, "auto", folder), memories)
    assert torch.equal(got, reference(lm, memories))
    with pytest.raises(ModelError, match="MEMBANK_WEIGHTS=int8"):
        decoder_of(lm, "int8", folder)


def test_a_model_that_only_looks_alike_is_refused_by_its_logits() -> None:
    lm = lm_of("llama")
    lm.decoder.layers[1].self_attn.register_forward_hook(lambda m, i, out: (out[0] * 1.5, out[1]))
    with pytest.raises(ModelError, match="logits differ"):
        Flat(lm)


@pytest.mark.parametrize("family", FLAT)
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("with_memories", [False, True])
def test_packed_weights_give_the_logits_of_a_model_with_the_rounded_weights(
    family: str, weights: Bits, with_memories: bool, folder: Path
) -> None:
    """Held to a model whose weights are what the packed ones stand for: all that is left is the
    cache's bfloat16, which is why the bound is not that of float32."""
    lm = lm_of(family)
    with torch.no_grad():
        for module in lm.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(pack_weights(module.weight, weights).dense())
    native = Native(Flat(lm), weights, folder)  # rounds to the same once more
    memories = weighted(lm) if with_memories else None
    got = logits(NativeDecoder(native), memories)
    expected = reference(lm, memories)
    assert divergence(expected, got) < 1e-4
    assert (got - expected).abs().max() < 0.08 * expected.std()


@pytest.mark.parametrize("family", FLAT)
@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.003), ("int4", 0.25)])
def test_rounding_stays_near_the_model(
    family: str, weights: Bits, bound: float, folder: Path
) -> None:
    """A random model of width 32 is the worst case: nothing in it averages out."""
    lm = lm_of(family)
    memories = memories_of(lm)
    got = logits(decoder_of(lm, weights, folder), memories)
    assert 0 < divergence(reference(lm, memories), got) < bound


def test_auto_without_a_compiler_computes_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lm = lm_of("llama")
    got = logits(decoder_of(lm, "auto", tmp_path), None)
    assert torch.equal(got, logits(decoder_of(lm, "float", tmp_path), None))
    with pytest.raises(ModelError, match="install gcc, or use auto"):
        decoder_of(lm, "int8", tmp_path)


def test_auto_with_a_compiler_that_fails_computes_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    lm = lm_of("llama")
    got = logits(decoder_of(lm, "auto", tmp_path / "built"), None)
    assert torch.equal(got, logits(decoder_of(lm, "float", tmp_path), None))


@pytest.mark.parametrize("weights", ["float", "int8"])
def test_a_stored_memory_and_the_weights_are_never_written_to(weights: str, folder: Path) -> None:
    lm = lm_of("llama")
    memories = weighted(lm)
    parts = {**lm.model.state_dict(), "keys": memories.keys, "values": memories.values}
    before = {name: tensor.clone() for name, tensor in parts.items()}
    decoder = decoder_of(lm, weights, folder)  # type: ignore[arg-type]
    first = logits(decoder, memories)
    assert torch.equal(first, logits(decoder, memories))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.items())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-oss, attention sinks"])
@pytest.mark.parametrize("weights", ["float", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_requests_of_a_batch_get_what_each_gets_alone(
    family: str, weights: str, dtype: torch.dtype, folder: Path
) -> None:
    """Bit for bit, in batches of every size up to twelve, with memories of their own, while
    others come and go."""
    lm = lm_of(family, dtype)
    if family not in FLAT and weights != "float":
        pytest.skip("packed weights are for the Llama shape")
    decoder = decoder_of(lm, weights, folder)  # type: ignore[arg-type]
    starts = [
        Start([40 + i + j for j in range(1 + 5 * i % 11)], 12, some)
        for i, some in enumerate(
            [None, memories_of(lm), weighted(lm), memories_of(lm, CHUNKS[1:])] * 3
        )
    ]
    alone = []
    for number, start in enumerate(starts):
        [reading] = decoder.read([start])
        steps = [reading.logits]
        for i in range(12 - number):
            decoder.feed([reading], [50 + i + number])
            steps.append(reading.logits)
        alone.append(steps)
    readings = [*decoder.read(starts[:5]), *decoder.read(starts[5:])]
    for i in range(12):
        here = [n for n in range(12) if i < 12 - n]
        decoder.feed([readings[n] for n in here], [50 + i + n for n in here])
        for n in here:
            assert torch.equal(readings[n].logits, alone[n][i + 1]), (n, i)


def test_bfloat16_is_as_near_as_transformers_is(folder: Path) -> None:
    lm, exact = lm_of("llama", torch.bfloat16), lm_of("llama")
    expected = reference(exact, memories_of(exact))
    usual = (reference(lm, memories_of(lm)) - expected).abs().mean()
    for weights in ("float", "int8"):
        got = logits(decoder_of(lm, weights, folder), memories_of(lm))  # type: ignore[arg-type]
        assert (got - expected).abs().mean() < 2 * usual, weights


def test_layers_of_different_shape_are_refused() -> None:
    config = tiny("llama").config
    model = made(config)
    mlp = model.model.layers[2].mlp
    mlp.gate_proj, mlp.up_proj = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
    mlp.down_proj = torch.nn.Linear(16, 32)
    with pytest.raises(ModelError, match="differ in shape"):
        Flat(LanguageModel(model, tokenizer=None))
