"""Threads compute the answers, and the event loop gets them piece by piece."""

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from starlette.types import Receive

from app.answer.ask import Answer, Answering
from app.errors import BusyError, LateError
from app.process.tracing import carried

T = TypeVar("T")
SEARCHES = min(8, max(2, os.cpu_count() or 2))
"""Requests that search and load at a time: no more than there are processors, or they slow each
other down, and few enough for the connections of one pool."""


class GoneError(Exception):
    """The caller has gone away."""


class Bridge:
    """The threads in which a process computes answers, one for each answer in progress."""

    def __init__(self, most: int) -> None:
        """`most`: answers at a time, beyond which requests are refused. A tenant gets at most half
        of the places, so that others find one."""
        self._pool = ThreadPoolExecutor(most, "answer", _compute_alone)
        self._searches = threading.BoundedSemaphore(SEARCHES)
        self._most, self._held = most, Counter[str]()
        self._counting = threading.Lock()

    def begin(self, tenant: str, start: Callable[[], Answering], seconds: float) -> "Running":
        """Start an answer that may take `seconds`. Raises BusyError when there are too many."""
        running = Running(start, self._searches, seconds)
        self._submit(tenant, running.work)
        return running

    async def search(self, tenant: str, work: Callable[[], T]) -> T:
        """The result of `work`, which searches. Raises BusyError as `begin` does."""

        def alone() -> T:
            with self._searches:
                return work()

        return await asyncio.wrap_future(self._submit(tenant, alone))

    def close(self) -> None:
        """Start no further answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        with self._counting:
            if self._held.total() >= self._most:
                raise BusyError("too many requests are being answered: try again soon")
            if self._held[tenant] >= (self._most + 1) // 2:
                raise BusyError("too many requests of yours are being answered: try again soon")
            self._held[tenant] += 1
        future = self._pool.submit(carried(work))
        future.add_done_callback(lambda _: self._leave(tenant))
        return future

    def _leave(self, tenant: str) -> None:
        with self._counting:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]


class Running:
    """An answer that a thread is computing."""

    def __init__(
        self, start: Callable[[], Answering], searches: threading.Semaphore, seconds: float
    ) -> None:
        self._start, self._searches, self._seconds = start, searches, seconds
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._said = asyncio.Queue[str | Answer | Exception]()
        self._answering: Answering | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Stop computing. Safe to call at any time."""
        self._cancelled = True
        if self._answering is not None:
            self._answering.cancel()

    async def next(self) -> str | Answer:
        """The next piece of text; after the last piece, the whole answer.

        Raises LateError when the time is up, GoneError when the caller has gone, and what went
        wrong in the thread.
        """
        try:
            async with asyncio.timeout_at(self._until):
                said = await self._said.get()
        except TimeoutError:
            raise LateError(
                f"the answer took longer than {self._seconds:g} s: try again, or ask for a shorter"
                " one (max_tokens)"
            ) from None
        if isinstance(said, Exception):
            raise said
        return said

    @contextlib.asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the answer if the caller goes away while the block runs."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancel()
        self._said.put_nowait(GoneError())

    def work(self) -> None:
        """Compute the whole answer in a thread."""
        try:
            with self._searches:
                if self._cancelled:
                    return
                self._answering = answering = self._start()
            # Whoever cancelled before the line above did not see what to cancel.
            if self._cancelled:
                answering.cancel()
                return
            for piece in answering:
                self._tell(piece)
            self._tell(answering.answer())
        except Exception as error:
            self._tell(error)

    def _tell(self, said: str | Answer | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
            self._loop.call_soon_threadsafe(self._said.put_nowait, said)


def _compute_alone() -> None:
    """What many threads compute at a time, each computes in itself."""
    import torch

    torch.set_num_threads(1)
