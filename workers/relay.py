"""Look for due work in the outbox and wake workers for it. Keeps nothing of its own.

Beside that it looks now and then for changes that no trigger noticed, and queues them; and for
large banks, and makes their vector indexes.
"""

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict

import redis
import structlog
from kombu.exceptions import OperationalError

from app.addresses import redis_url
from app.bank.indexes import keep
from app.bank.outbox import waiting_profiles
from app.bank.reconcile import reconcile
from app.errors import MembankError, UsageError
from app.log import configure
from app.settings import settings
from workers.app import app, queue_of

log = structlog.get_logger("relay")


def main() -> None:
    """Run until SIGTERM or SIGINT. Outlives a database or a Valkey that is away."""
    configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("started", poll_seconds=settings().poll_seconds)
    # In threads of their own: a look at all banks takes longer than a poll may.
    reconciler = threading.Thread(target=reconcile_regularly, args=(stop,), name="reconcile")
    reconciler.start()
    # Nobody waits for a build that has begun: the database ends it alone.
    threading.Thread(target=maintain_regularly, args=(stop,), name="maintain", daemon=True).start()
    well = True
    while not stop.is_set():
        try:
            wake()
            if not well:
                log.info("servers are back")
            well = True
        except (MembankError, OperationalError, redis.RedisError, OSError) as error:
            if well:
                log.warning("cannot relay, work waits in the outbox", reason=str(error))
            well = False
        stop.wait(settings().poll_seconds)
    reconciler.join()
    log.info("stopped")


def reconcile_regularly(stop: threading.Event) -> None:
    """Queue what no trigger noticed, soon after the start and then at every interval."""
    _regularly(stop, _reconcile, settings().reconcile_seconds, "cannot reconcile")


def maintain_regularly(stop: threading.Event) -> None:
    """Make the indexes of banks that have grown large, at the same times of another interval."""
    _regularly(stop, _maintain, settings().maintain_seconds, "cannot look after vector indexes")


def _regularly(
    stop: threading.Event,
    task: Callable[[threading.Event], None],
    seconds: float,
    failed: str,
) -> None:
    while not stop.is_set():
        try:
            task(stop)
        except Exception as error:  # the next time may succeed, so the thread must live
            log.warning(failed, reason=f"{type(error).__name__}: {error}")
        stop.wait(seconds)


def _reconcile(stop: threading.Event) -> None:
    found = reconcile(stop)
    if found.any:
        log.warning("changes that no trigger noticed", **asdict(found))


def _maintain(stop: threading.Event) -> None:
    try:
        kept = keep(settings().hnsw_from, stop)
    except UsageError as error:
        # Only the tables' owner can, and not every relay is told who that is.
        log.info("vector indexes are left to membank maintain", reason=str(error))
        stop.wait()
        return
    if kept.made or kept.dropped:
        log.info("vector indexes", made=kept.made, dropped=kept.dropped)


def wake() -> None:
    """Send one wake-up for each profile with due work, unless one is waiting already.

    A busy worker drains all there is; another wake-up is taken only by an idle one. So Valkey
    holds at most one message per profile, however long the outbox is.
    """
    profiles = waiting_profiles()
    if not profiles:
        return
    with redis.Redis.from_url(redis_url(), socket_timeout=5, socket_connect_timeout=5) as valkey:
        for profile in profiles:
            if valkey.llen(queue_of(profile)) == 0:
                app.send_task("membank.drain", queue=queue_of(profile), retry=False)


if __name__ == "__main__":
    main()
