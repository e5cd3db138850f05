"""Tokens out of the model: greedy or drawn, with memories or without, as they come, timed.

The loop is our own because transformers' `generate` asks for the last logits in a way that costs
80 ms on some processors, twice what the prefill of a question takes (docs/decisions/0004).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.answer.pieces import Pieces
from app.errors import UsageError
from app.memory.compose import Memories
from app.memory.decoder import Weights, decoder_of
from app.memory.model import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest.

    Otherwise it is drawn from the likeliest tokens that together have a probability of `top_p`
    (Holtzman et al. 2020, arXiv 1904.09751). The same seed gives the same answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}: give 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}: give more than 0, at most 1")


GREEDY = Sampling()


@dataclass(frozen=True)
class Generation:
    """An answer's tokens. Times are of time.perf_counter, in seconds."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    memory_entries: int
    started: float
    first_token: float


class Generator:
    """Answers prompts with one model."""

    def __init__(
        self, lm: LanguageModel, weights: Weights = "float", folder: Path = Path(".membank")
    ) -> None:
        """`weights` and `folder` are those of `decoder_of`, which also says what is raised."""
        self.lm = lm
        self._read = decoder_of(lm, weights, folder)

    def generate(
        self,
        prompt: list[int],
        max_tokens: int,
        memories: Memories | None = None,
        sampling: Sampling = GREEDY,
    ) -> Generation:
        """Continue `prompt`, reading `memories` in every layer if there are any.

        Ends with the model's end token, which is not part of the text, or after `max_tokens`.
        """
        stream = self.stream(prompt, max_tokens, memories, sampling)
        for _ in stream:
            pass
        return stream.generation()

    def stream(
        self,
        prompt: list[int],
        max_tokens: int,
        memories: Memories | None = None,
        sampling: Sampling = GREEDY,
    ) -> "Stream":
        """The same answer as pieces of text."""
        return Stream(self, prompt, max_tokens, memories, sampling)


class Stream:
    """An answer that is being given: iterate once over its text, then ask for the whole."""

    def __init__(
        self,
        generator: Generator,
        prompt: list[int],
        max_tokens: int,
        memories: Memories | None,
        sampling: Sampling,
    ) -> None:
        self._generator, self._prompt, self._max_tokens = generator, prompt, max_tokens
        self._memories, self._sampling = memories, sampling
        self._text, self._tokens = "", list[int]()
        self._started = self._first = time.perf_counter()

    def __iter__(self) -> Iterator[str]:
        pieces = Pieces(self._generator.lm.tokenizer)
        for token in self._chosen():
            if piece := pieces.push(token):
                self._text += piece
                yield piece
        if piece := pieces.end():
            self._text += piece
            yield piece

    def generation(self) -> Generation:
        """What was given so far."""
        entries = 0 if self._memories is None else self._memories.entries(0)
        return Generation(
            *(self._text, self._tokens, len(self._prompt), entries, self._started, self._first)
        )

    @torch.inference_mode()
    def _chosen(self) -> Iterator[int]:
        choose = _Choice(self._sampling)
        ends = self._generator.lm.end_tokens
        self._started = time.perf_counter()
        reading = self._generator._read(self._prompt, self._max_tokens, self._memories)
        while True:
            token = choose(reading.logits)
            self._tokens.append(token)
            if len(self._tokens) == 1:
                self._first = time.perf_counter()
            yield token
            if token in ends or len(self._tokens) >= self._max_tokens:
                return
            reading.feed(token)


class _Choice:
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """logits (vocabulary,) -> a token."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        likely, order = (
            (logits.cpu() / self._sampling.temperature).softmax(-1).sort(descending=True)
        )
        # A token stays while those before it have not reached top_p: the first always does.
        kept = likely.masked_fill_(likely.cumsum(-1) - likely >= self._sampling.top_p, 0.0)
        return int(order[torch.multinomial(kept, 1, generator=self._random)])
