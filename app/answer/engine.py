"""Many answers at once with one model: requests join and leave a batch between two tokens.

One thread computes; any number of threads wait for their answers. Each request keeps its memories,
its adapter and its way of choosing tokens, and gets what it would get alone (memory/decoder.py).
"""

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog
import torch

from app.answer.generate import Choice, Finish, Generation, Generator, Read, Refresh
from app.answer.pieces import Pieces
from app.answer.question import Question
from app.errors import UnavailableError
from app.memory.compose import Memories
from app.memory.decoder import Decoder
from app.memory.flat import Start
from app.runtime import generator

T = TypeVar("T")
log = structlog.get_logger("engine")

# Tokens of prompts that are read in one pass, so that answers under way do not wait long for it.
_PASS_TOKENS = 384


class Job:
    """An answer that an engine gives: iterate once over its text, in any one thread."""

    def __init__(
        self,
        model: Generator,
        question: Question,
        prompt: list[int],
        memories: Read,
        refresh: Refresh | None,
        tenant: int,
    ) -> None:
        self.model, self.tenant = model, tenant
        self.reading: Any = None
        self.cancelled = False
        self._question, self._prompt, self._made = question, prompt, memories
        self._refresh, self._choose = refresh, Choice(question.sampling)
        self._memories: Memories | None = None
        self._tokens: list[int] = []
        self._out: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._text = ""
        self._finished: Finish = None
        self._started = self._first = 0.0
        self._refreshes, self._refreshing = 0, 0.0

    def __iter__(self) -> Iterator[str]:
        pieces = Pieces(self.model.lm.tokenizer)
        while (token := self._out.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if piece := pieces.push(token):
                self._text += piece
                yield piece
        if piece := pieces.end():
            self._text += piece
            yield piece

    def generation(self) -> Generation:
        entries = 0 if self._memories is None else self._memories.entries(0)
        now = time.perf_counter()
        started, first = self._started or now, self._first or now
        return Generation(
            *(self._text, list(self._tokens), len(self._prompt), entries, started, first),
            *(self._refreshes, self._refreshing, self._finished),
        )

    def cancel(self) -> None:
        self.cancelled = True
        self._out.put(None)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows, for the one who waits."""
        self._out.put(error)

    def start(self) -> Start:
        """What is to be read first, or anew after other memories came."""
        self._started = self._started or time.perf_counter()
        if callable(self._made):
            self._made = self._made()
        self._memories = self._made
        left = self._question.max_tokens - len(self._tokens)
        return Start([*self._prompt, *self._tokens], left, self._memories)

    @property
    def size(self) -> int:
        """Tokens that reading it first takes."""
        return len(self._prompt) + len(self._tokens)

    def take(self) -> int | None:
        """The next token, None when the answer has ended with it."""
        token = self._choose(self.reading.logits)
        self._tokens.append(token)
        if len(self._tokens) == 1:
            self._first = time.perf_counter()
        if token in self.model.lm.end_tokens:
            self._finished = "stop"
        elif len(self._tokens) >= self._question.max_tokens:
            self._finished = "length"
        self._out.put(token)
        if self._finished is None:
            return token
        self.reading = None
        self.end()
        return None

    @property
    def is_due(self) -> bool:
        """Whether memories are to be searched for again before the next token."""
        return self._refresh is not None and len(self._tokens) % self._refresh.every == 0

    def search_again(self) -> bool:
        """Whether other memories came; they are read with the next start."""
        before, pieces = time.perf_counter(), Pieces(self.model.lm.tokenizer)
        said = "".join(map(pieces.push, self._tokens))
        memories = None if self._refresh is None else self._refresh.ask(said)
        if memories is not None:
            self._made = memories
        self._refreshes += 1
        self._refreshing += time.perf_counter() - before
        return memories is not None


def model_of(question: Question) -> Generator:
    """What a question is answered with. Takes seconds where it was never used before."""
    return generator(question.mode, question.adapter)


class Engine:
    """Computes the answers of this process. It is what `Answering` generates with."""

    def __init__(
        self, most: int = 32, model_of: Callable[[Question], Generator] = model_of
    ) -> None:
        """`most`: answers in the batch; more wait, each tenant in its turn."""
        self._most, self._model_of = most, model_of
        self._waiting: dict[int, deque[Job]] = {}
        self._running: list[Job] = []
        self._searching = 0
        self._searched: list[tuple[Job, bool]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._tokens = self._steps = 0
        self._searches = ThreadPoolExecutor(2, "refresh")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __call__(
        self,
        question: Question,
        prompt: list[int],
        memories: Read,
        refresh: Refresh | None,
        tenant: int,
    ) -> Job:
        """Begin an answer. Raises UnavailableError when the engine was closed."""
        job = Job(self._model_of(question), question, prompt, memories, refresh, tenant)
        with self._changed:
            if self._closed:
                raise _closed()
            self._waiting.setdefault(tenant, deque()).append(job)
            self._changed.notify()
        return job

    def stats(self) -> dict[str, int]:
        """Answers in the batch and waiting for it; tokens and steps since the start."""
        with self._changed:
            waiting = sum(map(len, self._waiting.values()))
        running = len(self._running) + self._searching
        return {
            "running": running,
            "waiting": waiting,
            "tokens": self._tokens,
            "steps": self._steps,
        }

    def close(self) -> None:
        """Compute nothing more. Answers under way end with UnavailableError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._searches.shutdown()
        for job, _ in self._searched:
            job.end(_closed())

    @torch.inference_mode()
    def _run(self) -> None:
        # Each thread has its own number of threads to compute with.
        torch.set_num_threads(torch.get_num_threads())
        while True:
            with self._changed:
                while not (self._closed or self._running or self._searched or self._waiting):
                    self._changed.wait()
                if self._closed:
                    break
                new = self._admitted()
            try:
                self._begin(new)
                self._advance()
            except Exception as error:
                # What one request brings ends with it (_begin); this is everyone's.
                log.error("the engine failed", reason=f"{type(error).__name__}: {error}")
                for job in [*self._running, *new]:
                    job.end(error)
                self._running.clear()
        for job in [*self._running, *(j for some in self._waiting.values() for j in some)]:
            job.end(_closed())

    def _admitted(self) -> list[Job]:
        """Who joins now: each time the tenant that has the fewest answers in the batch."""
        new, tokens = list[Job](), 0
        busy = Counter(job.tenant for job in self._running)
        room = self._most - len(self._running) - self._searching
        while self._searched:
            job, changed = self._searched.pop()
            self._searching -= 1
            if changed:
                new.append(job)
                tokens += job.size
            elif not job.cancelled:
                self._running.append(job)
        while self._waiting and room > 0 and (not new or tokens < _PASS_TOKENS):
            tenant = min(self._waiting, key=lambda one: busy[one])
            job = self._waiting[tenant].popleft()
            # Behind the others of the same claim next time.
            rest = self._waiting.pop(tenant)
            if rest:
                self._waiting[tenant] = rest
            if job.cancelled:
                continue
            busy[tenant] += 1
            room -= 1
            tokens += job.size
            new.append(job)
        return new

    def _begin(self, new: Sequence[Job]) -> None:
        """Read the prompts of those that join, together where they have the same weights."""
        ready = list[tuple[Job, Start]]()
        for job in new:
            try:
                ready.append((job, job.start()))
            except Exception as error:
                job.end(error)
        for decoder, some in _by_model(ready):
            readings = decoder.read([start for _, start in some])
            for (job, _), reading in zip(some, readings, strict=True):
                job.reading = reading
                self._running.append(job)

    def _advance(self) -> None:
        """One more token of every answer; those that end leave."""
        self._steps += 1
        going = list[tuple[Job, int]]()
        for job in self._running:
            if job.cancelled:
                job.reading = None
                continue
            self._tokens += 1
            if (token := job.take()) is not None:
                going.append((job, token))
        # Whoever searches again in mid-answer holds up nobody else.
        due = [job for job, _ in going if job.is_due]
        for decoder, some in _by_model(going):
            decoder.feed([job.reading for job, _ in some], [token for _, token in some])
        self._running = [job for job, _ in going if not job.is_due]
        self._searching += len(due)
        for job in due:
            self._searches.submit(self._search, job)

    def _search(self, job: Job) -> None:
        try:
            found = job, job.search_again()
        except Exception as error:
            job.cancelled = True
            job.end(error)
            found = job, False
        with self._changed:
            self._searched.append(found)
            self._changed.notify()


def _by_model(some: Sequence[tuple[Job, T]]) -> Iterator[tuple[Decoder, list[tuple[Job, T]]]]:
    """Apart by the weights that they are read with."""
    found = dict[int, list[tuple[Job, T]]]()
    for one in some:
        found.setdefault(id(one[0].model), []).append(one)
    for listed in found.values():
        yield listed[0][0].model.decoder, listed


def _closed() -> UnavailableError:
    return UnavailableError("the service is ending: ask again in a moment")
