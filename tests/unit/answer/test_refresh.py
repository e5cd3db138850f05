"""Memories that are swapped in the middle of an answer: exactly what starting over would give."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from app.errors import UsageError
from app.memory.compose import Memories, compose
from app.memory.decode.decoder import ModelDecoder, Reading
from app.memory.decode.flat import Start
from app.memory.decode.generate import (
    GREEDY,
    Choice,
    Generation,
    Generator,
    Refresh,
    Sampling,
    Wanted,
)
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from tests.unit.answer.test_generate import DRAWN, PROMPT, Letters
from tests.unit.memory.families import CHUNKS, PREFIX, tiny

EVERY, LONG = 4, 14
READINGS = [
    ("llama", "model"),
    ("mistral, sliding window", "model"),
    ("gpt-oss, attention sinks", "model"),
    ("llama", "float"),
    ("qwen3", "float"),
    ("llama", "int8"),
    ("smollm3, layers without rotary", "int8"),
]


class Case:
    """A generator whose answers do not end by themselves, memories for it, what it has read."""

    def __init__(self, family: str, reading: str, folder: Path) -> None:
        self.lm = LanguageModel(tiny(family), Letters())
        self.lm.__dict__["end_tokens"] = frozenset()
        if reading == "model":
            self.generator = Generator(self.lm, "auto", folder)
            self.generator.decoder = ModelDecoder(self.lm)
        else:
            self.generator = Generator(self.lm, "int8" if reading == "int8" else "float", folder)
        self.decoder = self.generator.decoder
        self.passes: list[list[int]] = []
        self.generator.decoder = self
        self.encoder = Encoder(self.lm, PREFIX)
        self.stored = self.encoder.encode(CHUNKS)

    def read(self, starts: Sequence[Start]) -> Sequence[Reading]:
        self.passes += [list(start.prompt) for start in starts]
        found: Sequence[Reading] = self.decoder.read(starts)
        return found

    def feed(self, readings: Sequence[Reading], tokens: Sequence[int]) -> None:
        self.decoder.feed(readings, tokens)

    def memories(self, *chunks: int) -> Memories:
        return compose([[self.stored[i] for i in chunks]], self.lm.rotary, self.encoder.prefix)

    def answer(
        self, ask: Callable[[str], Memories | None], sampling: Sampling = GREEDY
    ) -> Generation:
        refresh = Refresh(EVERY, ask)
        return self.generator.generate(PROMPT, LONG, self.memories(0), sampling, refresh)

    @torch.inference_mode()
    def started_over(self, sets: Sequence[Memories], sampling: Sampling) -> list[int]:
        """Each set's share of the answer from a new reading of all that is written by then."""
        choose, written = Choice(sampling), list[int]()
        for number, memories in enumerate(sets):
            [reading] = self.decoder.read([Start([*PROMPT, *written], LONG, memories)])
            last = number == len(sets) - 1
            for _ in range(LONG - len(written) if last else EVERY):
                written.append(choose(reading.logits))
                self.decoder.feed([reading], written[-1:])
        return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(params=READINGS, ids=" ".join)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    return Case(*request.param, folder)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_after_a_swap_the_answer_is_what_starting_over_gives(
    case: Case, sampling: Sampling
) -> None:
    """Other memories, more of them, none but the prefix: after 4, 8 and 12 tokens."""
    sets = [case.memories(0), case.memories(1), case.memories(2, 0), case.memories()]
    coming = iter(sets[1:])
    answer = case.answer(lambda _: next(coming), sampling)
    assert answer.tokens == case.started_over(sets, sampling)
    assert answer.tokens != case.generator.generate(PROMPT, LONG, sets[0], sampling).tokens
    assert (answer.refreshes, answer.memory_entries) == (3, len(PREFIX))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_what_is_live_is_read_once_for_each_swap_and_not_at_all_without_one(
    case: Case, sampling: Sampling
) -> None:
    coming = iter([None, case.memories(1), None])
    answer = case.answer(lambda _: next(coming), sampling)
    assert case.passes == [PROMPT, PROMPT + answer.tokens[:8]]
    case.passes.clear()
    same = case.answer(lambda _: None, sampling)
    assert case.passes == [PROMPT]
    assert same.tokens == case.generator.generate(PROMPT, LONG, case.memories(0), sampling).tokens
    assert (same.refreshes, answer.refreshes) == (3, 3)


@pytest.mark.parametrize("family", ["llama", "gpt-neox, partial rotary", "qwen3"])
def test_after_a_swap_the_answer_is_that_of_the_same_text_in_the_prompt(
    family: str, folder: Path
) -> None:
    """Held to a plain prompt, without memories: prefix, chunk, question and answer so far."""
    case = Case(family, "float" if family == "qwen3" else "model", folder)
    coming = iter([case.memories(1), None, None])
    tokens = case.answer(lambda _: next(coming)).tokens
    plain = PREFIX + CHUNKS[1] + PROMPT + tokens[:EVERY]
    assert tokens[EVERY:] == case.generator.generate(plain, LONG - EVERY).tokens


def test_memories_are_asked_for_with_what_is_shown_and_not_after_the_last_token(
    folder: Path,
) -> None:
    case, asked = Case("llama", "float", folder), list[str]()

    def ask(written: str) -> Memories:
        asked.append(written)
        return case.memories(1)

    refresh = Refresh(EVERY, ask)
    stream = case.generator.stream(Wanted(PROMPT, 12, case.memories(0), refresh=refresh))
    shown = ""
    for piece in stream:
        assert not asked or shown.startswith(asked[-1])
        shown += piece
    assert shown == stream.generation().text
    assert asked == [shown[:4], shown[:8]]  # one letter a token
    assert len(stream.generation().tokens) == 12


def test_an_answer_ends_behind_swapped_memories_too(folder: Path) -> None:
    case = Case("llama", "float", folder)
    usual = case.answer(lambda _: case.memories(1), DRAWN).tokens
    last = next(i for i, t in enumerate(usual) if i > EVERY and t not in usual[:i])
    case.lm.__dict__["end_tokens"] = frozenset([usual[last]])
    assert case.answer(lambda _: case.memories(1), DRAWN).tokens == usual[: last + 1]


def test_shares_of_a_later_set_are_those_of_its_own_pass(folder: Path) -> None:
    case = Case("llama", "float", folder)
    first, second = case.memories(0), case.memories(1, 2)
    coming = iter([second, None, None])
    refresh = Refresh(EVERY, lambda _: next(coming))
    tokens = case.generator.generate(PROMPT, LONG, first, refresh=refresh).tokens
    alone = case.memories(1, 2)
    case.generator.generate(PROMPT + tokens[:EVERY], 1, alone)
    assert second.shares(0, 2) == alone.shares(0, 2)
    assert 0 < first.shares(0, 1)[0] < 1


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="every 0 tokens"):
        Refresh(0, lambda _: None)
