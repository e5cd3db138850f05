"""Tokens out of the model: greedy or drawn, with memories or without, as they come, timed.

The loop is our own because transformers' `generate` asks for the last logits in a way that costs
80 ms on some processors, twice what the prefill of a question takes (docs/decisions/0004).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from app.errors import UsageError
from app.memory.compose import Memories, compose
from app.memory.decode.decoder import Weights, decoder_of
from app.memory.decode.flat import Start
from app.memory.decode.pieces import Pieces
from app.memory.encode import Encoder
from app.memory.model.load import LanguageModel
from app.memory.shares import Shares


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


@dataclass(frozen=True)
class Unencoded:
    """Text that is read as one memory, encoded by whoever computes the answer, when its turn comes.

    tokens: of the text, at least one; encoder: of the model without an adapter.
    """

    tokens: list[int]
    encoder: Encoder

    def encoded(self) -> Memories:
        """The memory behind the encoder's prefix."""
        stored = self.encoder.encode([self.tokens])
        return compose([stored], self.encoder.lm.rotary, self.encoder.prefix)


@dataclass(frozen=True)
class Wanted:
    """An answer that is to be given: `prompt` continued, with `memories` read in every layer.

    It ends with the model's end token, which is not part of the text, or after `max_tokens`.
    """

    prompt: list[int]
    max_tokens: int
    memories: Memories | Unencoded | None = None
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Generation:
    """An answer's tokens. Times are of time.perf_counter, in seconds.

    memory_entries: of the memories that were read, the encoder's prefix included.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    memory_entries: int
    started: float
    first_token: float
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
        memories: Memories | Unencoded | None = None,
        sampling: Sampling = GREEDY,
    ) -> Generation:
        """The whole answer at once; the arguments are the fields of Wanted."""
        stream = self.stream(Wanted(prompt, max_tokens, memories, sampling))
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
        self.shares = Shares()
        self._choose = Choice(wanted.sampling)
        self._memories: Memories | None = None
        self._finished: Finish = None
        self._text, self._tokens = "", list[int]()
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
            *(self._text, list(self._tokens), len(self.wanted.prompt), entries),
            *(started, first, self._finished),
        )

    def cancel(self) -> None:
        """No further token is computed. Harmless at any time, from any thread."""
        self.cancelled = True

    def start(self) -> Start:
        """What is read first: the prompt and its memories, with room for the answer."""
        self._started, wanted = time.perf_counter(), self.wanted
        read = wanted.memories
        self._memories = read.encoded() if isinstance(read, Unencoded) else read
        return Start(wanted.prompt, wanted.max_tokens, self._memories, self.shares)

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


class Stream(Telling):
    """An answer computed in the thread that iterates over it."""

    @torch.inference_mode()
    def _arriving(self) -> Iterator[int]:
        decoder = self.generator.decoder
        [reading] = decoder.read([self.start()])
        while not self.cancelled:
            token = self.take(reading.logits)
            yield self._tokens[-1]
            if token is None:
                return
            decoder.feed([reading], [token])


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
