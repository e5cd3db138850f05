"""Drains the outbox: claims work, stores, splits or encodes it, and writes the result.

All state is in the database.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
from celery.signals import worker_shutting_down

from app.errors import MembankError, UnavailableError
from app.queue import outbox
from app.queue.outbox import Work
from app.runtime.identity import profile
from app.settings import settings
from workers.app import app
from workers.encoding import encode, split
from workers.uploads import store

log = structlog.get_logger("worker")
stopping = threading.Event()
# Seconds. A worker takes no wake-ups during a task, so one that never ended would look dead.
_LONGEST_TASK = 60.0
# Seconds spent on uploaded files before other work is claimed again.
_READING_SECONDS = 2.0
# Model calls' worth of chunks leased at a time. With more chunks, more are of the same length and
# less is padded; with one call's worth, a quarter of the tokens was padding.
_BATCHES = 4
# Characters of a traceback to keep: its end, where the failure is.
_LONGEST_TRACEBACK = 16_000


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop(**_: object) -> None:
    stopping.set()


@app.task(name="membank.drain")  # type: ignore[untyped-decorator]
def drain() -> int:
    """Work until nothing is due, a minute has passed, or the worker is told to stop.

    Returns the number of rows done. If the database becomes unavailable, the task ends, and the
    relay will send another.
    """
    done, deadline = 0, time.monotonic() + _LONGEST_TASK
    rows = rows_of_a_claim()
    try:
        while not stopping.is_set() and time.monotonic() < deadline:
            work = outbox.claim(profile().id, rows, settings().lease_seconds)
            if not work:
                break
            done += _process(work)
    except UnavailableError as error:
        log.warning("server unavailable", reason=str(error))
    return done


def rows_of_a_claim() -> int:
    """How many rows a worker claims at a time."""
    return max(1, _BATCHES * settings().batch_tokens // profile().chunk_tokens)


def _process(work: Sequence[Work]) -> int:
    """Do new work together, then one row that has failed before, by itself.

    Other rows that have failed before go back untouched, so that if this one kills the process,
    only this one is blamed. When told to stop, finish the current step and release the rest.
    """
    done, limit = 0, settings().max_attempts
    fresh = [w for w in work if w.attempts == 1]
    again = [w for w in work if 1 < w.attempts <= limit]
    with _leases_renewed(work):
        for one in (w for w in work if w.attempts > limit):
            _fail(one, MembankError("the worker died on every attempt"))
        if again[1:]:
            outbox.release(again[1:])
        for one in (w for w in fresh if w.chunk is None and w.file is None):
            done += _try(split, [one])
        chunks = [w for w in fresh if w.chunk is not None]
        done += _try(encode, chunks) if chunks else 0
        done += _read([w for w in fresh if w.file is not None])
        for one in again[:1]:
            done += _try(_step(one), [one])
    return done


def _read(files: Sequence[Work]) -> int:
    """Store files for a short time, at least one, and release the rest: some take minutes."""
    done, until = 0, time.monotonic() + _READING_SECONDS
    for number, one in enumerate(files):
        if number and time.monotonic() > until:
            outbox.release(files[number:])
            break
        done += _try(store, [one])
    return done


def _step(work: Work) -> Callable[[list[Work]], int]:
    if work.file is not None:
        return store
    return split if work.chunk is None else encode


def _try(step: Callable[[list[Work]], int], work: list[Work]) -> int:
    if stopping.is_set():  # released, so that others need not wait for its lease to expire
        outbox.release(work)
        return 0
    try:
        return step(work)
    except UnavailableError:
        raise
    except Exception as error:
        if len(work) == 1:
            _fail(work[0], error)
            return 0
        half = len(work) // 2  # halving isolates the poisonous row, and the others get done
        return _try(step, work[:half]) + _try(step, work[half:])


def _fail(work: Work, error: Exception) -> None:
    where = "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:]
    reason = f"{type(error).__name__}: {error}"
    buried = outbox.fail(work, reason, settings().max_attempts, where)
    log.error(
        "failed for good" if buried else "failed, will be retried",
        document=work.document or work.file,
        chunk=work.chunk,
        attempts=work.attempts,
        error=type(error).__name__,
    )


@contextmanager
def _leases_renewed(work: Sequence[Work]) -> Iterator[None]:
    """Renew the leases from a separate thread while the model runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(settings().lease_seconds / 3):
            try:
                outbox.renew(work, settings().lease_seconds)
            except Exception as error:  # the next beat may succeed, so the thread must go on
                log.warning("lease not renewed", reason=type(error).__name__)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
