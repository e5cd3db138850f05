"""One generator: greedy or drawn, whole or in pieces, repeatable."""

from collections.abc import Sequence

import pytest
import torch

from app.errors import UsageError
from app.memory.compose import compose
from app.memory.decode.generate import Choice, Generator, Sampling, Wanted
from app.memory.decode.pieces import Pieces
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.memory.model.packaged import SMOLLM2, language_model_folder
from app.runtime.identity import tokenizer
from app.settings import settings
from tests.unit.memory.families import tiny

PROMPT = [40, 41, 42]
DRAWN = Sampling(temperature=1.5, top_p=0.9, seed=7)


class Letters:
    """A tokenizer of one letter a token; 2 is the end."""

    eos_token_id = 2

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(chr(96 + token % 26) for token in tokens if token != 2)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny("llama"), Letters())


@pytest.fixture(scope="module")
def generator(lm: LanguageModel) -> Generator:
    return Generator(lm)


def test_greedy_is_what_generate_of_transformers_says(
    lm: LanguageModel, generator: Generator
) -> None:
    ids = torch.tensor([PROMPT])
    expected = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert generator.generate(PROMPT, 12).tokens == expected[0, len(PROMPT) :].tolist()


def test_an_answer_ends_with_the_end_token_which_is_no_text(
    lm: LanguageModel, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = generator.generate(PROMPT, 8).tokens
    monkeypatch.setitem(lm.__dict__, "end_tokens", frozenset([usual[3]]))
    assert generator.generate(PROMPT, 8).tokens == usual[: usual.index(usual[3]) + 1]


def test_the_same_seed_draws_the_same_answer_and_another_one_another(
    generator: Generator,
) -> None:
    first = generator.generate(PROMPT, 16, sampling=DRAWN)
    generator.generate(PROMPT, 16, sampling=Sampling(1.0, seed=1))
    assert generator.generate(PROMPT, 16, sampling=DRAWN).tokens == first.tokens
    others = [
        generator.generate(PROMPT, 16, sampling=Sampling(1.5, 0.9, seed=seed)).tokens
        for seed in range(5)
    ]
    assert len({tuple(tokens) for tokens in others}) > 1


def test_two_streams_in_turns_give_what_each_gives_alone(generator: Generator) -> None:
    alone = generator.generate(PROMPT, 8, sampling=DRAWN), generator.generate(PROMPT[::-1], 8)
    one, other = (
        generator.stream(wanted)
        for wanted in (Wanted(PROMPT, 8, sampling=DRAWN), Wanted(PROMPT[::-1], 8))
    )
    assert len(list(zip(one, other, strict=False))) > 1
    for stream, whole in zip((one, other), alone, strict=True):
        assert whole.text.startswith(stream.generation().text)


def test_a_small_top_p_is_greedy(generator: Generator) -> None:
    greedy = generator.generate(PROMPT, 8).tokens
    assert generator.generate(PROMPT, 8, sampling=Sampling(1.0, 1e-6, 3)).tokens == greedy


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    choose = Choice(Sampling(temperature=1.0, top_p=0.8, seed=0))
    drawn = torch.bincount(torch.tensor([choose(logits) for _ in range(4000)]), minlength=4) / 4000
    assert drawn.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


@pytest.mark.parametrize("value", [1e-3, 1e-30, 1e-44, 5e-324])
def test_the_smallest_temperature_and_top_p_are_greedy(generator: Generator, value: float) -> None:
    greedy = generator.generate(PROMPT, 8).tokens
    for sampling in (Sampling(value, 1.0, 3), Sampling(2.0, value, 3), Sampling(value, value, 3)):
        assert generator.generate(PROMPT, 8, sampling=sampling).tokens == greedy


def test_the_highest_temperature_draws_from_all() -> None:
    choose = Choice(Sampling(temperature=1e308, seed=0))
    assert {choose(torch.tensor([9.0, 0.0, -9.0])) for _ in range(99)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("values", "named"),
    [((-1.0,), "temperature"), ((float("nan"),), "temperature"), ((1.0, 0.0), "top_p")],
)
def test_values_that_cannot_be_are_refused_by_name(values: tuple[float, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Sampling(*values)


def test_pieces_are_the_answer_and_memories_are_counted(
    lm: LanguageModel, generator: Generator
) -> None:
    encoder = Encoder(lm, [3, 4])
    memories = compose([encoder.encode([[5, 6, 7]])], lm.rotary, encoder.prefix)
    stream = generator.stream(Wanted(PROMPT, 6, memories))
    assert "".join(stream) == stream.generation().text
    whole = generator.generate(PROMPT, 6, memories)
    assert whole.tokens == stream.generation().tokens
    assert (whole.memory_entries, whole.prompt_tokens) == (5, 3)
    assert whole.started < whole.first_token


@pytest.mark.parametrize(
    "text",
    [
        "Wörter — naïve 日本語のテキスト, emoji 👩‍👩‍👧 🇩🇪 and more.",
        "  spaces  inside\n\n and   around \n ",
        "1 234,56 € (approx.) don't I'm",
        "",
    ],
)
def test_pieces_of_the_default_model_concatenate_to_the_text(text: str) -> None:
    words = tokenizer()
    pieces = Pieces(words)
    ids = [*words(text, add_special_tokens=False).input_ids, words.eos_token_id]
    found = [pieces.push(token) for token in ids] + [pieces.end()]
    assert "".join(found) == text.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert len(list(filter(None, found))) >= len(text.split()) // 2


def test_an_answer_cut_inside_a_character_shows_that_at_its_end() -> None:
    words = tokenizer()
    pieces = Pieces(words)
    ids = words("ok 👩", add_special_tokens=False).input_ids
    text = "".join([*(pieces.push(token) for token in ids[:-1]), pieces.end()])
    assert text == words.decode(ids[:-1])


def test_tokenizers_that_drop_a_first_space_keep_those_inside() -> None:
    class Words:
        def decode(self, tokens: Sequence[int], **_: object) -> str:
            return "".join(f" {'abc'[token]}" for token in tokens).removeprefix(" ")

    pieces = Pieces(Words())
    assert "".join([*(pieces.push(token) for token in (0, 1, 2)), pieces.end()]) == "a b c"


def test_packed_weights_answer_as_float_does() -> None:
    """The default model, whose weights come from 4 bits, from a fact in memory."""
    from app.memory.model.load import load
    from app.memory.model.prompt import Prompt

    folder = language_model_folder(SMOLLM2, settings().models)
    lm = load(folder, dtype="float32", tokenizer=tokenizer())
    prompt = Prompt.of(lm.tokenizer)
    encoder = Encoder(lm, prompt.prefix)
    stored = encoder.encode([prompt.chunk("Annual Leave\nEmployees of Acme get 27 days a year.")])
    tail = prompt.tail("How many days of annual leave does an employee of Acme get?")
    native = settings().models.expanduser() / "native"
    answers = [
        Generator(lm, weights, native).generate(
            tail, 20, compose([stored], lm.rotary, encoder.prefix)
        )
        for weights in ("float", "auto", "int8")
    ]
    assert all("27" in answer.text for answer in answers)
    assert answers[0].text == answers[1].text
