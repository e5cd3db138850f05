"""Tokens out of the model: greedy or drawn, with memories or without, as they come, timed.

The loop is our own because transformers' `generate` asks for the last logits in a way that costs
80 ms on some processors, twice what the prefill of a question takes (docs/decisions/0004).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from app.answer.pieces import Pieces
from app.errors import UsageError
from app.memory.compose import Memories
from app.memory.decoder import Reading, Weights, decoder_of
from app.memory.flat import Start
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
Finish = Literal["stop", "length"] | None
"""Why an answer ended: the model's end token, or as many tokens as were wanted; None: it has not,
or was cut off."""
Read = Memories | Callable[[], Memories] | None
"""What is read: memories, what makes them when their turn comes, or nothing."""


@dataclass(frozen=True)
class Refresh:
    """Other memories in the middle of an answer (Memory3 asks for them every 64 tokens).

    After every `every` tokens `ask` is given the text so far and gives the memories to go on with,
    or None for those that are being read. None costs nothing else: the cache stays. Other memories
    cost one pass over prompt and answer, after which the answer is what it would be had it been
    started over behind them, with what is written already.
    """

    every: int
    ask: Callable[[str], Memories | None]

    def __post_init__(self) -> None:
        """Raises UsageError for an interval that is none."""
        if self.every < 1:
            raise UsageError(f"a refresh every {self.every} tokens: give at least 1")


@dataclass(frozen=True)
class Generation:
    """An answer's tokens. Times are of time.perf_counter, in seconds.

    memory_entries: those of the memories that were read last; refreshes: how often others were
    asked for; refreshing: seconds that this took, reading again included.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    memory_entries: int
    started: float
    first_token: float
    refreshes: int
    refreshing: float
    finished: Finish = None


class Streaming(Protocol):
    """An answer that is being given."""

    def __iter__(self) -> Iterator[str]:
        """Its text in pieces, once."""

    def generation(self) -> Generation:
        """What was given so far."""

    def cancel(self) -> None:
        """No further token is computed. Harmless at any time, from any thread."""


class Generator:
    """Answers prompts with one model."""

    def __init__(
        self, lm: LanguageModel, weights: Weights = "float", folder: Path = Path(".membank")
    ) -> None:
        """`weights` and `folder` are those of `decoder_of`, which also says what is raised."""
        self.lm = lm
        self.decoder = decoder_of(lm, weights, folder)

    def generate(
        self,
        prompt: list[int],
        max_tokens: int,
        memories: Read = None,
        sampling: Sampling = GREEDY,
        refresh: Refresh | None = None,
    ) -> Generation:
        """Continue `prompt`, reading `memories` in every layer if there are any.

        Ends with the model's end token, which is not part of the text, or after `max_tokens`.
        """
        stream = self.stream(prompt, max_tokens, memories, sampling, refresh)
        for _ in stream:
            pass
        return stream.generation()

    def stream(
        self,
        prompt: list[int],
        max_tokens: int,
        memories: Read = None,
        sampling: Sampling = GREEDY,
        refresh: Refresh | None = None,
    ) -> "Stream":
        """The same answer as pieces of text."""
        return Stream(self, prompt, max_tokens, memories, sampling, refresh)


class Stream:
    """An answer that is being given: iterate once over its text, then ask for the whole."""

    def __init__(
        self,
        generator: Generator,
        prompt: list[int],
        max_tokens: int,
        memories: Read,
        sampling: Sampling,
        refresh: Refresh | None,
    ) -> None:
        self._generator, self._prompt, self._max_tokens = generator, prompt, max_tokens
        self._made, self._sampling, self._refresh = memories, sampling, refresh
        self._memories: Memories | None = None
        self._finished: Finish = None
        self._cancelled = False
        self._text, self._tokens = "", list[int]()
        self._refreshes, self._refreshing = 0, 0.0
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
            *(self._text, self._tokens, len(self._prompt), entries, self._started, self._first),
            *(self._refreshes, self._refreshing, self._finished),
        )

    def cancel(self) -> None:
        self._cancelled = True

    @torch.inference_mode()
    def _chosen(self) -> Iterator[int]:
        choose = Choice(self._sampling)
        ends = self._generator.lm.end_tokens
        self._started = time.perf_counter()
        self._memories = self._made() if callable(self._made) else self._made
        reading = self._read()
        while not self._cancelled:
            token = choose(reading.logits)
            self._tokens.append(token)
            if len(self._tokens) == 1:
                self._first = time.perf_counter()
            if token in ends or len(self._tokens) >= self._max_tokens:
                self._finished = "stop" if token in ends else "length"
            yield token
            if self._finished:
                return
            reread = self._reread()
            if reread is None:
                self._generator.decoder.feed([reading], [token])
            else:
                reading = reread

    def _read(self) -> Reading:
        """Prompt and answer so far in one pass, with room for the rest."""
        live, left = [*self._prompt, *self._tokens], self._max_tokens - len(self._tokens)
        [reading] = self._generator.decoder.read([Start(live, left, self._memories)])
        found: Reading = reading
        return found

    def _reread(self) -> Reading | None:
        """The same behind other memories, where it is time to ask for them and there are any."""
        if self._refresh is None or len(self._tokens) % self._refresh.every:
            return None
        before = time.perf_counter()
        memories = self._refresh.ask(self._text)
        if memories is not None:
            self._memories = memories
        reading = None if memories is None else self._read()
        self._refreshes += 1
        self._refreshing += time.perf_counter() - before
        return reading


class Choice:
    """Chooses an answer's tokens, one after the other."""

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
