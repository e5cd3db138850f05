"""The exactness properties on the real SmolLM2, and that it loads fast once converted."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.attention import injected
from app.memory.codec.pack import pack, unpack
from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.load import LanguageModel, load
from app.memory.model.packaged import SMOLLM2, language_model_folder
from app.memory.model.prompt import Prompt
from app.settings import settings

FACTS = [
    "Annual Leave\nEvery employee of Acme has 27 days of annual leave per year.",
    "Office Dogs\nDogs may come to the office on Fridays only.",
    "Pension\nThe company pays 6 percent of the salary into the pension.",
]
QUESTION = "How many days of annual leave does an employee of Acme have?"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(language_model_folder(SMOLLM2, settings().models), dtype="float32")


@pytest.fixture(scope="module")
def prompt(lm: LanguageModel) -> Prompt:
    return Prompt.of(lm.tokenizer)


@pytest.fixture(scope="module")
def encoder(lm: LanguageModel, prompt: Prompt) -> Encoder:
    return Encoder(lm, prompt.prefix)


def logits(lm: LanguageModel, encoder: Encoder, memories: list[KV], tail: list[int]) -> Tensor:
    composed = compose([memories], lm.rotary, encoder.prefix)
    with torch.no_grad(), injected(lm.model, composed):
        return lm.model(
            torch.tensor([tail]),
            position_ids=composed.positions(len(tail)),
            past_key_values=DynamicCache(),
        ).logits[0]


def test_one_memory_gives_the_logits_of_the_same_prompt_with_text(
    lm: LanguageModel, prompt: Prompt, encoder: Encoder
) -> None:
    for fact in FACTS:
        chunk = prompt.chunk(fact)
        got = logits(lm, encoder, encoder.encode([chunk]), prompt.tail(QUESTION))
        with torch.no_grad():
            plain = lm.model(torch.tensor([prompt.with_text([chunk], QUESTION)])).logits[0]
        assert (got - plain[-len(got) :]).abs().max() < 1e-3


def test_three_memories_equal_one_block_diagonal_pass_at_the_same_positions(
    lm: LanguageModel, prompt: Prompt, encoder: Encoder
) -> None:
    prefix, tail = prompt.prefix, prompt.tail(QUESTION)
    chunks = [prompt.chunk(fact) for fact in FACTS]
    got = logits(lm, encoder, encoder.encode(chunks), tail)

    # Each chunk sees a prefix right before itself, as when it was encoded; the question sees the
    # first one and every chunk.
    p = len(prefix)
    ids, block, places, place = list(prefix), [0] * p, list(range(p)), p
    for number, chunk in enumerate(chunks, 1):
        ids += [*prefix, *chunk]
        block += [-number] * p + [number] * len(chunk)
        places += [*range(place - p, place), *range(place, place + len(chunk))]
        place += len(chunk)
    ids, block = ids + tail, block + [9] * len(tail)
    places += range(place, place + len(tail))
    segment = torch.tensor(block)
    sees = (segment[:, None].abs() == segment.abs()) & (segment[:, None] != 0)
    sees |= (segment[:, None] == 0) & (segment == 0)
    sees |= (segment[:, None] == 9) & (segment >= 0)
    sees &= torch.ones(len(ids), len(ids)).tril().bool()
    with torch.no_grad():
        plain = lm.model(
            torch.tensor([ids]),
            attention_mask=sees[None, None],
            position_ids=torch.tensor([places]),
            use_cache=False,
        ).logits[0]
    assert (got - plain[-len(tail) :]).abs().max() < 1e-3


def test_eight_bits_change_next_token_distributions_hardly(
    lm: LanguageModel, prompt: Prompt, encoder: Encoder
) -> None:
    tail = prompt.tail(QUESTION)
    dense = encoder.encode([prompt.chunk(FACTS[0])])
    packed = [unpack(pack(kv, "p"), "p") for kv in dense]
    before, after = (logits(lm, encoder, kv, tail).log_softmax(-1) for kv in (dense, packed))
    divergence = (before.exp() * (before - after)).sum(-1)
    assert divergence.max() < 0.01
    assert torch.equal(before.argmax(-1), after.argmax(-1))


def test_the_fact_is_read_from_memory(lm: LanguageModel, prompt: Prompt, encoder: Encoder) -> None:
    tail = prompt.tail(QUESTION)
    composed = compose([encoder.encode([prompt.chunk(FACTS[0])])], lm.rotary, encoder.prefix)
    ids = torch.tensor([tail])
    with injected(lm.model, composed):
        output = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            position_ids=composed.positions(len(tail)),
            pad_token_id=2,
        )
    assert "27" in lm.tokenizer.decode(output[0, len(tail) :])
