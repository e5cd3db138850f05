"""Readings by the engine against plain forward passes, one prompt at a time, without a cache."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor

from app.answer.engine import Engine
from app.answer.question import Question
from app.memory.compose import Memories, compose
from app.memory.decode.generate import Generator
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from benchmarks.divergence import Asking, RowAnswer, read
from tests.unit.memory.families import tiny

PREFIX, OTHER_PREFIX = [5, 6, 7], [8, 9]
CHUNKS = [[11, 12, 13, 14], [15, 16, 17]]
TAILS = [[31, 32, 33], [34, 35, 36]]
TOKENS = 6


class Words:
    """A tokenizer that writes the ids."""

    eos_token_id = 2

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(f" {token}" for token in tokens)


@pytest.fixture(params=["llama", "mistral, sliding window", "gemma3"])
def lm(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LanguageModel(tiny(request.param), Words())
    torch.set_num_threads(threads)


@torch.no_grad()
def plain(model: Any, prompt: list[int], tokens: int, ends: frozenset[int]) -> list[int]:
    """Greedy by whole forward passes."""
    answer: list[int] = []
    while len(answer) < tokens and not (answer and answer[-1] in ends):
        logits = model(torch.tensor([prompt + answer]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


@torch.no_grad()
def after(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities (len(answer), vocabulary) of each of the answer's tokens."""
    logits = model(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0]
    return logits[-len(answer) :].double().log_softmax(dim=-1)  # type: ignore[no-any-return]


def readings(
    lm: LanguageModel, rows: list[Memories], tokens: int = TOKENS
) -> list[list[RowAnswer]]:
    generator = Generator(lm)
    with closing(Engine(model_of=lambda _: generator)) as engine:
        return read(engine, [Asking(Question("?"), tail, rows) for tail in TAILS], tokens)


def rows_of(lm: LanguageModel) -> tuple[list[Memories], list[list[int]]]:
    """What is read, and the text in front of the question that each of them stands for."""
    encoder, closed = Encoder(lm, PREFIX), Encoder(lm, OTHER_PREFIX)
    (first,) = encoder.encode(CHUNKS[:1])
    (both,) = encoder.encode([CHUNKS[0] + CHUNKS[1]])
    rows = [compose([[kv]], lm.rotary, encoder.prefix) for kv in (first, both)]
    rows.append(compose([[]], lm.rotary, closed.prefix))
    return rows, [PREFIX + CHUNKS[0], PREFIX + CHUNKS[0] + CHUNKS[1], OTHER_PREFIX]


def test_each_row_answers_as_the_same_text_in_a_prompt_does(lm: LanguageModel) -> None:
    rows, texts = rows_of(lm)
    found = readings(lm, rows)
    for tail, answers in zip(TAILS, found, strict=True):
        for text, reading in zip(texts, answers, strict=True):
            assert reading.tokens == plain(lm.model, text + tail, TOKENS, lm.end_tokens)
            assert reading.text == " ".join(map(str, reading.tokens))


def test_divergence_is_that_of_the_distributions_after_the_first_rows_answer(
    lm: LanguageModel,
) -> None:
    rows, texts = rows_of(lm)
    found = readings(lm, rows)
    for tail, answers in zip(TAILS, found, strict=True):
        said = answers[0].tokens
        base = after(lm.model, texts[0] + tail, said)
        for text, reading in zip(texts, answers, strict=True):
            other = after(lm.model, text + tail, said)
            expected = float((base.exp() * (base - other)).sum(-1).mean())
            assert reading.divergence == pytest.approx(expected, abs=1e-3, rel=1e-3)
        assert answers[2].divergence > 0.01


@pytest.mark.parametrize("end", [0, 2])
def test_a_row_ends_at_its_end_token_and_holds_up_no_other(end: int) -> None:
    lm = LanguageModel(tiny("llama"), Words())
    rows, texts = rows_of(lm)
    endless = [
        [plain(lm.model, text + tail, TOKENS, frozenset()) for text in texts] for tail in TAILS
    ]
    lm.end_tokens = frozenset([endless[0][0][end]])
    found = readings(lm, rows)
    expected = [
        [plain(lm.model, text + tail, TOKENS, lm.end_tokens) for text in texts] for tail in TAILS
    ]
    assert [[reading.tokens for reading in answers] for answers in found] == expected
    for tail, answers in zip(TAILS, found, strict=True):
        base, other = (after(lm.model, texts[i] + tail, answers[0].tokens) for i in (0, 1))
        kl = float((base.exp() * (base - other)).sum(-1).mean())
        assert answers[1].divergence == pytest.approx(kl, abs=1e-3, rel=1e-3)


def test_memories_stay_as_they_are_and_the_first_row_is_not_apart_from_itself() -> None:
    lm = LanguageModel(tiny("llama"), Words())
    rows, _ = rows_of(lm)
    before = [row.keys.clone() for row in rows]
    for one, *_ in readings(lm, rows, 1):
        assert one.divergence == 0
    assert all(torch.equal(a, row.keys) for a, row in zip(before, rows, strict=True))
