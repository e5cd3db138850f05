"""Tokens out of the model: greedy or drawn, with memories or without, as they come, timed.

The loop is our own because transformers' `generate` asks for the last logits in a way that costs
80 ms on some processors, twice what the prefill of a question takes (docs/decisions/0004).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from app.errors import UsageError
from app.memory.compose import Memories
from app.memory.decode.decoder import Weights, decoder_of
from app.memory.decode.flat import Start
from app.memory.decode.pieces import Pieces
from app.memory.model.load import LanguageModel


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
class Wanted:
    """An answer that is to be given: `prompt` continued, with `memories` read in every layer.

    It ends with the model's end token, which is not part of the text, or after `max_tokens`.
    """

    prompt: list[int]
    max_tokens: int
    memories: Read = None
    sampling: Sampling = GREEDY
    refresh: Refresh | None = None


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
        """The whole answer at once; the arguments are the fields of Wanted."""
        stream = self.stream(Wanted(prompt, max_tokens, memories, sampling, refresh))
        for _ in stream:
            pass
        return stream.generation()

    def stream(self, wanted: Wanted) -> "Stream":
        """An answer as pieces of text."""
        return Stream(self, wanted)


class Telling(ABC):
    """An answer that is being given: iterate once over its text, then ask for the whole.

    Who computes it, and in which thread, is the subclasses' affair; what it has read and said, and
    when it ends, is here.
    """

    def __init__(self, generator: Generator, wanted: Wanted) -> None:
        self.generator, self.wanted = generator, wanted
        self.cancelled = False
        self.refreshing = 0.0
        self._made, self._choose = wanted.memories, Choice(wanted.sampling)
        self._memories: Memories | None = None
        self._finished: Finish = None
        self._text, self._tokens, self._refreshes = "", list[int](), 0
        self._started = self._first = 0.0

    def __iter__(self) -> Iterator[str]:
        pieces = Pieces(self.generator.lm.tokenizer)
        for token in self._arriving():
            if piece := pieces.push(token):
                self._text += piece
                yield piece
        if piece := pieces.end():
            self._text += piece
            yield piece

    @abstractmethod
    def _arriving(self) -> Iterator[int]:
        """The tokens, as they are chosen."""

    def generation(self) -> Generation:
        """What was given so far."""
        entries = 0 if self._memories is None else self._memories.entries(0)
        now = time.perf_counter()
        started, first = self._started or now, self._first or now
        return Generation(
            *(self._text, list(self._tokens), len(self.wanted.prompt), entries, started, first),
            *(self._refreshes, self.refreshing, self._finished),
        )

    def cancel(self) -> None:
        """No further token is computed. Harmless at any time, from any thread."""
        self.cancelled = True

    def start(self) -> Start:
        """What is to be read first, or anew after other memories came: prompt and answer so far,
        with room for the rest."""
        self._started = self._started or time.perf_counter()
        self._memories = self._made = self._made() if callable(self._made) else self._made
        left = self.wanted.max_tokens - len(self._tokens)
        return Start([*self.wanted.prompt, *self._tokens], left, self._memories)

    def take(self, logits: Tensor) -> int | None:
        """Choose the next token, None when the answer has ended with it."""
        token = self._choose(logits)
        self._tokens.append(token)
        if len(self._tokens) == 1:
            self._first = time.perf_counter()
        if token in self.generator.lm.end_tokens:
            self._finished = "stop"
        elif len(self._tokens) >= self.wanted.max_tokens:
            self._finished = "length"
        return None if self._finished else token

    @property
    def is_due(self) -> bool:
        """Whether memories are to be searched for again before the next token is read."""
        refresh = self.wanted.refresh
        return refresh is not None and len(self._tokens) % refresh.every == 0

    def search_again(self) -> bool:
        """Whether other memories came; they are read with the next start."""
        pieces = Pieces(self.generator.lm.tokenizer)
        said = "".join(map(pieces.push, self._tokens))
        refresh = self.wanted.refresh
        memories = None if refresh is None else refresh.ask(said)
        if memories is not None:
            self._made = memories
        self._refreshes += 1
        return memories is not None


class Stream(Telling):
    """One that the thread computes which iterates."""

    @torch.inference_mode()
    def _arriving(self) -> Iterator[int]:
        decoder = self.generator.decoder
        [reading] = decoder.read([self.start()])
        while not self.cancelled:
            token = self.take(reading.logits)
            yield self._tokens[-1]
            if token is None:
                return
            before, due = time.perf_counter(), self.is_due
            if due and self.search_again():
                [reading] = decoder.read([self.start()])
            else:
                decoder.feed([reading], [token])
            self.refreshing += time.perf_counter() - before if due else 0.0


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
        # From the likeliest down, and in float64: the smallest temperature overflows nothing then.
        below = logits.cpu().double() - float(logits.max())
        likely, order = (below / self._sampling.temperature).softmax(-1).sort(descending=True)
        # A token stays while those before it have not reached top_p: the first always does.
        beyond = likely.cumsum(-1) - likely >= self._sampling.top_p
        beyond[0] = False
        kept = likely.masked_fill_(beyond, 0.0)
        return int(order[torch.multinomial(kept, 1, generator=self._random)])
