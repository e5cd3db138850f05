"""Look for due work in the outbox and wake workers for it. Keeps nothing of its own.

Beside that it switches banks to the profile that they were encoded anew under, and looks now and
then for changes that no trigger noticed, for memories that are to be encrypted under another key,
and for events that the audit log need not keep.
"""

import signal
import threading
from dataclasses import asdict

import redis
import structlog
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from app.addresses import redis_url
from app.bank import profiles
from app.bank.audit import expire
from app.bank.outbox import waiting_profiles
from app.bank.reconcile import next_tenant, reconcile
from app.bank.reseal import reseal
from app.errors import MembankError
from app.log import configure
from app.settings import settings
from workers.app import app, queue_of
from workers.start import require_safe

log = structlog.get_logger("relay")


def main() -> None:
    """Run until SIGTERM or SIGINT. Outlives a database or a Valkey that is away."""
    configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    require_safe(log, stop)
    log.info("started", poll_seconds=settings().poll_seconds)
    # In a thread of its own: a look at all banks takes longer than a poll may.
    maintenance = threading.Thread(target=maintain_regularly, args=(stop,), name="maintenance")
    maintenance.start()
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
    maintenance.join()
    log.info("stopped")


def maintain_regularly(stop: threading.Event) -> None:
    """All maintenance, soon after the start and then at every interval."""
    while not stop.is_set():
        for step in (_reconcile, _reseal, _expire):
            try:
                step(stop)
            except Exception as error:  # the next time may succeed, so the thread must live
                reason = f"{type(error).__name__}: {error}"
                log.warning(f"cannot {step.__name__.strip('_')}", reason=reason)
        stop.wait(settings().reconcile_seconds)


def _reconcile(stop: threading.Event) -> None:
    """Queue what no trigger noticed."""
    found = reconcile(stop)
    if found.any:
        log.warning("changes that no trigger noticed", **asdict(found))
    elif found.former_memories:
        log.info("memories of former profiles removed", memories=found.former_memories)


def _reseal(stop: threading.Event) -> None:
    """Encrypt what is plain or under an older key."""
    done = reseal(stop)
    if done.any:
        level = log.warning if done.faults else log.info
        level("memories encrypted again", **asdict(done))


def _expire(stop: threading.Event) -> None:
    """Delete what the audit log need not keep any longer."""
    days = settings().audit_days
    tenant = next_tenant(0) if days else None
    while tenant is not None and not stop.is_set():
        expire(tenant, days)
        tenant = next_tenant(tenant)


def switch() -> None:
    """Switch the banks whose next profile is ready."""
    for tenant, bank in profiles.switch():
        log.info("a bank was switched to its next profile", tenant=tenant, bank=bank)


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
