"""Many answers at once with one model: requests join and leave a batch between two tokens.

One thread computes; any number of threads wait for their answers. Each request keeps its memories,
its adapter and its way of choosing tokens, and gets what it would get alone (memory/decoder.py).
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
import torch

from app.answer.question import Question
from app.errors import UnavailableError
from app.memory.decode.decoder import Decoder
from app.memory.decode.flat import Start
from app.memory.decode.generate import Generator, Telling, Wanted
from app.runtime.models import generator

T = TypeVar("T")
log = structlog.get_logger("engine")

# Tokens of prompts that are read in one pass, so that answers under way do not wait long for it.
_PASS_TOKENS = 384


class Job(Telling):
    """An answer that an engine computes; its tokens wait for the thread that iterates."""

    def __init__(self, generator: Generator, wanted: Wanted, tenant: int) -> None:
        super().__init__(generator, wanted)
        self.tenant, self.size = tenant, len(wanted.prompt)
        self.reading: Any = None
        self._out: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def _arriving(self) -> Iterator[int]:
        while (token := self._out.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            yield token

    def cancel(self) -> None:
        super().cancel()
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows, for the one who waits."""
        self._out.put(error)

    def advance(self) -> int | None:
        """The next token of what is being read, None when the answer has ended with it."""
        token = self.take(self.reading.logits)
        self._out.put(self._tokens[-1])
        if token is None:
            self.reading = None
            self.end()
        return token


def model_of(question: Question) -> Generator:
    """What a question is answered with. Takes seconds where it was never used before."""
    return generator(question.mode, question.adapter)


class Engine:
    """Computes the answers of this process. It is what `Answering` generates with."""

    def __init__(
        self,
        most: int = 32,
        model_of: Callable[[Question], Generator] = model_of,
        load: Callable[[], object] = lambda: None,
    ) -> None:
        """`most`: answers in the batch; more wait, each tenant in its turn. `load`: what the
        engine's thread does before all else.

        The threads of a parallel computation wait for one another in a busy loop as long as they
        are no more than the processors, and a thread that once began one keeps its helpers: so
        models are best loaded, and computed with, by this thread alone (prompts: 31 ms, else 50).
        """
        self._most, self._model_of = most, model_of
        self.loaded: Future[None] = Future()
        self._waiting: dict[int, deque[Job]] = {}
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._tokens = self._steps = 0
        self._thread = threading.Thread(
            target=self._start, args=(load,), name="engine", daemon=True
        )
        self._thread.start()

    def __call__(self, question: Question, wanted: Wanted, tenant: int) -> Job:
        """Begin an answer. Raises UnavailableError when the engine was closed."""
        job = Job(self._model_of(question), wanted, tenant)
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
        return {
            "running": len(self._running),
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

    def _start(self, load: Callable[[], object]) -> None:
        # Each thread has its own number of threads to compute with.
        torch.set_num_threads(torch.get_num_threads())
        try:
            load()
        except BaseException as error:
            self.loaded.set_exception(error)
        else:
            self.loaded.set_result(None)
            self._run()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._running or self._waiting):
                    self._changed.wait()
                if self._closed:
                    break
                new = self._admitted()
            try:
                self._begin(new)
                self._advance()
            except Exception as error:
                # What one request brings ends with it; this is everyone's.
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
        room = self._most - len(self._running)
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
            try:
                token = job.advance()
            except Exception as error:  # it is this one's: the others go on
                job.reading = None
                job.end(error)
                continue
            if token is not None:
                going.append((job, token))
        for decoder, some in _by_model(going):
            decoder.feed([job.reading for job, _ in some], [token for _, token in some])
        self._running = [job for job, _ in going]


def _by_model(some: Sequence[tuple[Job, T]]) -> Iterator[tuple[Decoder, list[tuple[Job, T]]]]:
    """Apart by the weights that they are read with."""
    found = dict[int, list[tuple[Job, T]]]()
    for one in some:
        found.setdefault(id(one[0].generator), []).append(one)
    for listed in found.values():
        yield listed[0][0].generator.decoder, listed


def _closed() -> UnavailableError:
    return UnavailableError("the service is ending: ask again in a moment")
