"""A dense memory is the text in the prompt; several are a block-diagonal forward pass."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.errors import MembankError, ModelError
from app.memory.attention import Glance, injected, watched
from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel
from app.memory.shares import Shares
from tests.unit.memory.families import (
    CHUNKS,
    FAMILIES,
    LIVE,
    PREFIX,
    SMALL,
    lm_of,
    made,
    read,
    tiny,
)


def visible(segments: list[int], positions: list[int], window: int | None) -> Tensor:
    """The block-diagonal mask: segment -1 is seen by all, LIVE (99) sees all, others themselves.

    Segments 100 + i are private copies of the prefix for chunk i, which the live tokens do not see.
    """
    n = len(segments)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for q in range(n):
        for k in range(q + 1):
            a, b = segments[q], segments[k]
            own = a == b or b == -1 or b == a + 100
            if a == 99:
                own = b < 100
            if 0 <= a < 99 and b == -1:
                own = a + 100 not in segments
            if a >= 100:
                own = a == b
            near = window is None or positions[q] - positions[k] < window
            mask[q, k] = own and near
    return mask


def reference(
    lm: LanguageModel, segments: list[int], ids: list[int], positions: list[int]
) -> Tensor:
    """One plain forward pass over all the text, eager, with the given mask; logits of the end."""
    config = lm.model.config
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)

    def additive(limit: int | None) -> Tensor:
        seen = visible(segments, positions, limit)
        return torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    mask: Any = additive(window)
    if types and len(set(types)) > 1:
        mask = {"full_attention": additive(None), "sliding_attention": additive(window)}
    elif types and set(types) == {"full_attention"}:
        mask = additive(None)
    usual = config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            logits = lm.model(
                input_ids=torch.tensor([ids]),
                attention_mask=mask,
                position_ids=torch.tensor([positions]),
                use_cache=False,
            ).logits
    finally:
        lm.model.set_attn_implementation(usual)
    return logits[0, -len(LIVE) :]


def test_one_dense_memory_gives_the_logits_of_the_text_in_the_prompt(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    memory = encoder.encode([CHUNKS[0]])
    got = read(lm, compose([memory], lm.rotary, encoder.prefix), [LIVE])[0]
    with torch.no_grad():
        plain = lm.model(input_ids=torch.tensor([PREFIX + CHUNKS[0] + LIVE])).logits[0]
    assert (got - plain[-len(LIVE) :]).abs().max() < 1e-3


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0]])
def test_memories_in_sequence_equal_one_block_diagonal_pass(
    lm: LanguageModel, order: list[int]
) -> None:
    """Each chunk sees a prefix right before itself, as when it was encoded; the live tokens see
    the first one only."""
    encoder = Encoder(lm, PREFIX)
    chunks = [CHUNKS[i] for i in order]
    memories = encoder.encode(chunks)
    got = read(lm, compose([memories], lm.rotary, encoder.prefix), [LIVE])[0]
    ids, segments, positions, place = list(PREFIX), [-1] * 4, list(range(4)), 4
    for i, chunk in enumerate(chunks):
        ids += PREFIX + chunk
        segments += [100 + i] * 4 + [i] * len(chunk)
        positions += [*range(place - 4, place), *range(place, place + len(chunk))]
        place += len(chunk)
    ids, segments = ids + LIVE, segments + [99] * len(LIVE)
    positions += range(place, place + len(LIVE))
    assert (got - reference(lm, segments, ids, positions)).abs().max() < 1e-3


def test_without_prefix_sequence_equals_plain_block_diagonal_text(lm: LanguageModel) -> None:
    encoder = Encoder(lm, [])
    memories = encoder.encode(CHUNKS)
    got = read(lm, compose([memories], lm.rotary), [LIVE])[0]
    ids = [i for chunk in CHUNKS for i in chunk] + LIVE
    segments = [i for i, chunk in enumerate(CHUNKS) for _ in chunk] + [99] * len(LIVE)
    expected = reference(lm, segments, ids, list(range(len(ids))))
    assert (got - expected).abs().max() < 1e-3


def test_requests_with_different_memories_equal_each_one_alone(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    a, b, c = encoder.encode(CHUNKS)
    requests = [[a], [c, b, a], [], [b]]
    live = [LIVE, LIVE[::-1], LIVE[1:] + LIVE[:1], LIVE]
    together = read(lm, compose(requests, lm.rotary, encoder.prefix), live)
    for request, question, got in zip(requests, live, together, strict=True):
        alone = read(lm, compose([request], lm.rotary, encoder.prefix), [question])[0]
        assert (got - alone).abs().max() < 1e-4


def test_chunks_encoded_together_equal_each_one_alone(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    together = encoder.encode(CHUNKS)
    for kv, chunk in zip(together, CHUNKS, strict=True):
        (alone,) = encoder.encode([chunk])
        assert kv.keys.shape == alone.keys.shape
        assert (kv.keys - alone.keys).abs().max() < 1e-4
        assert (kv.values - alone.values).abs().max() < 1e-4


def test_generating_equals_greedy_decoding_of_the_text_in_the_prompt(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    memories = compose([encoder.encode([CHUNKS[2]])], lm.rotary, encoder.prefix)
    ids = torch.tensor([LIVE])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with injected(lm.model, memories):
        got = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            position_ids=memories.positions(len(LIVE)),
            **options,
        )[0, len(LIVE) :]
    text = torch.tensor([PREFIX + CHUNKS[2] + LIVE])
    plain = lm.model.generate(text, attention_mask=torch.ones_like(text), **options)
    assert got.tolist() == plain[0, text.shape[1] :].tolist()


class Tokens(BaseStreamer):
    """Streamed tokens, as they come."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def put(self, value: Tensor) -> None:
        self.seen += value.flatten().tolist()

    def end(self) -> None:
        self.seen.append(-1)


@pytest.mark.parametrize("sampled", [False, True])
def test_generate_streams_and_samples_as_from_the_text_in_the_prompt(
    lm: LanguageModel, sampled: bool
) -> None:
    encoder = Encoder(lm, PREFIX)
    memories = compose([encoder.encode([CHUNKS[2]])], lm.rotary, encoder.prefix)
    ids, text = torch.tensor([LIVE]), torch.tensor([PREFIX + CHUNKS[2] + LIVE])
    options = {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None}
    options |= {"do_sample": sampled} | ({"temperature": 1.5, "top_k": 20} if sampled else {})
    streamer = Tokens()
    torch.manual_seed(1)
    with injected(lm.model, memories):
        got = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            position_ids=memories.positions(len(LIVE)),
            streamer=streamer,
            **options,
        )
    torch.manual_seed(1)
    plain = lm.model.generate(text, attention_mask=torch.ones_like(text), **options)
    assert got[0, len(LIVE) :].tolist() == plain[0, text.shape[1] :].tolist()
    assert streamer.seen == [*got[0].tolist(), -1]


def test_a_loop_over_the_model_generates_what_generate_does(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    memories = compose([encoder.encode(CHUNKS)], lm.rotary, encoder.prefix)
    cache, step, before = DynamicCache(), LIVE, 0
    tokens: list[int] = []
    with torch.no_grad(), injected(lm.model, memories):
        for _ in range(8):
            places = memories.positions(len(step), before)
            out = lm.model(torch.tensor([step]), position_ids=places, past_key_values=cache)
            before += len(step)
            step = [int(out.logits[0, -1].argmax())]
            tokens += step
        ids = torch.tensor([LIVE])
        got = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            position_ids=memories.positions(len(LIVE)),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    assert got[0, len(LIVE) :].tolist() == tokens


def test_a_stored_memory_is_the_same_after_three_answers(lm: LanguageModel) -> None:
    encoder = Encoder(lm, PREFIX)
    stored = encoder.encode(CHUNKS)
    before = [KV(kv.keys.clone(), kv.values.clone()) for kv in stored]
    answers = []
    for _ in range(3):
        memories = compose([stored], lm.rotary, encoder.prefix)
        ids = torch.tensor([LIVE])
        with injected(lm.model, memories):
            answers.append(
                lm.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=5,
                    do_sample=False,
                    position_ids=memories.positions(len(LIVE)),
                    pad_token_id=0,
                ).tolist()
            )
    assert answers[0] == answers[1] == answers[2]
    for kv, old in zip(stored, before, strict=True):
        assert torch.equal(kv.keys, old.keys)
        assert torch.equal(kv.values, old.values)


def test_after_injection_the_model_is_exactly_the_base_model(lm: LanguageModel) -> None:
    ids = torch.tensor([LIVE])
    with torch.no_grad():
        before = lm.model(ids).logits
        encoder = Encoder(lm, PREFIX)
        read(lm, compose([encoder.encode(CHUNKS)], lm.rotary, encoder.prefix), [LIVE])
        assert torch.equal(lm.model(ids).logits, before)


def test_shares_of_attention_are_those_of_the_prompts_last_token() -> None:
    lm = lm_of(tiny("llama"))
    encoder = Encoder(lm, PREFIX)
    stored = encoder.encode(CHUNKS)
    memories = compose([stored], lm.rotary, encoder.prefix)
    glances: list[Glance] = []
    shares = Shares()
    assert shares.of(memories, 0, 3) == [0.0] * 3
    with watched(glances.append):
        read(lm, memories, [LIVE], shares)
    last = torch.stack([one.weights[0, :, -1] for one in glances if one.weights is not None])
    expected = [float(last.mean(dim=(0, 1))[memories.owner[0] == i].sum()) for i in range(3)]
    assert shares.of(memories, 0, 3) == pytest.approx(expected, abs=1e-6)
    read(lm, memories, [LIVE[:1]], shares)  # a later pass changes nothing
    assert shares.of(memories, 0, 3) == pytest.approx(expected, abs=1e-6)
    assert all(0 < share < 1 for share in expected)
    assert sum(expected) < 1


_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
_LINEAR = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


@pytest.mark.parametrize(
    ("family", "reason", "options"),
    [
        ("mamba", "recurrent", {}),
        ("recurrent_gemma", "recurrent", {"lru_width": 32}),
        ("qwen3_next", "recurrent", _LINEAR),
        ("rwkv", "recurrent", {"attention_hidden_size": 32}),
        ("bamba", "recurrent", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}),
        ("deepseek_v2", "MLA", _MLA),
        ("deepseek_v3", "MLA", _MLA),
        ("bloom", "ALiBi", {}),
        ("mpt", "ALiBi", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
        ("falcon", "ALiBi", {"alibi": True}),
        ("gpt2", "absolute positions", {}),
        ("opt", "absolute positions", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("gptj", "no rotary position embedding that can be called", {"rotary_dim": 4}),
        ("lfm2", "layers of the kind conv", {"layer_types": ["conv", "full_attention"] * 2}),
        ("stablelm", "attention interface", {}),
    ],
)
def test_a_family_that_cannot_keep_memories_is_refused_with_the_reason(
    family: str, reason: str, options: dict[str, Any]
) -> None:
    small = SMALL if family not in {"mpt", "rwkv", "falcon"} else {"vocab_size": 97}
    if family in {"rwkv", "falcon"}:
        small |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CONFIG_MAPPING[family](**{**small, **options})
    with pytest.raises(ModelError, match=f"'{family}' .*{reason}"):
        _ = lm_of(made(config)).rotary


@pytest.mark.parametrize("family", [f for f in FAMILIES if "gpt-oss" not in f])
def test_bfloat16_is_as_near_as_another_order_of_plain_computation(family: str) -> None:
    """Without gpt-oss, whose router sends a token elsewhere for the least rounding."""
    lm = lm_of(tiny(family, torch.bfloat16))
    encoder = Encoder(lm, PREFIX)
    got = read(lm, compose([[encoder.encode([CHUNKS[2]])[0]]], lm.rotary, encoder.prefix), [LIVE])
    text = torch.tensor([PREFIX + CHUNKS[2] + LIVE])
    with torch.no_grad():
        exact, plain = (model(text).logits[0, -len(LIVE) :] for model in (tiny(family), lm.model))
    assert (got[0] - exact).abs().mean() < 2 * (plain - exact).abs().mean()


def test_composing_nothing_at_all_is_refused() -> None:
    lm = lm_of(tiny("llama"))
    with pytest.raises(MembankError, match="nothing to compose"):
        compose([[]], lm.rotary)


def test_threads_read_and_encode_with_one_model_at_a_time() -> None:
    """Each has its own memories, and the model is as it was when the last one has ended."""
    lm = lm_of(tiny("llama"))
    encoder = Encoder(lm, PREFIX)
    usual = lm.model.config._attn_implementation
    alone = encoder.encode(CHUNKS)
    readings = [compose([[kv]], lm.rotary, encoder.prefix) for kv in alone]
    expected = [read(lm, reading, [LIVE]) for reading in readings]
    together = threading.Barrier(4, timeout=30)

    def reads(turn: int) -> None:
        together.wait()
        for _ in range(20):
            which = turn % len(readings)
            got = read(lm, readings[which], [LIVE])
            torch.testing.assert_close(got, expected[which], atol=1e-4, rtol=1e-4)

    def encodes(_: int) -> None:
        together.wait()
        for _ in range(20):
            for kv, right in zip(encoder.encode(CHUNKS), alone, strict=True):
                torch.testing.assert_close(kv.keys, right.keys, atol=1e-5, rtol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, i) for i, work in enumerate((reads, encodes) * 2)]:
            done.result()
    assert lm.model.config._attn_implementation == usual
