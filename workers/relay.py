"""The relay: looks for due work in the outbox and wakes workers. It keeps no state of its own.

It also switches banks that have been encoded under a new profile to it, and runs the maintenance
(workers/maintenance.py).
"""

import signal
import threading

import redis
import structlog
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from app.bank import profiles
from app.db.addresses import redis_url
from app.db.schema import await_safe
from app.db.session import Asker, transaction
from app.errors import MembankError
from app.process.log import configure
from app.queue.outbox import waiting_profiles
from app.settings import settings
from workers import maintenance
from workers.app import app, queue_of

log = structlog.get_logger("relay")


def main() -> None:
    """Run until SIGTERM or SIGINT, waiting while the database or Valkey is unavailable."""
    configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    await_safe(log, stop, "worker")
    log.info("started", poll_seconds=settings().poll_seconds)
    upkeep = maintenance.start(stop)
    well = True
    while not stop.is_set():
        try:
            wake()
            switch()
            if not well:
                log.info("servers are back")
            well = True
        except (MembankError, DBAPIError, OperationalError, redis.RedisError, OSError) as error:
            if well:
                log.warning("cannot relay, work waits in the outbox", reason=str(error))
            well = False
        stop.wait(settings().poll_seconds)
    upkeep.join()
    log.info("stopped")


def switch() -> None:
    """Switch every bank whose memories are all ready under its next profile."""
    with transaction(Asker("worker")) as connection:
        changing = profiles.changing(connection)
    for tenant, bank in changing:
        with transaction(Asker("worker", tenant)) as connection:
            switched = profiles.switch(connection, tenant, bank)
        if switched:
            log.info("a bank was switched to its next profile", tenant=tenant, bank=bank)


def wake() -> None:
    """Send one wake-up for each profile with due work, unless one is already waiting.

    A busy worker drains the outbox, and only an idle one takes another wake-up. So Valkey holds
    at most one message per profile, however long the outbox is.
    """
    waiting = waiting_profiles()
    if not waiting:
        return
    with redis.Redis.from_url(redis_url(), socket_timeout=5, socket_connect_timeout=5) as valkey:
        for profile in waiting:
            if valkey.llen(queue_of(profile)) == 0:
                app.send_task("membank.drain", queue=queue_of(profile), retry=False)


if __name__ == "__main__":
    main()
