"""Periodic maintenance, which the relay runs in separate threads."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict

import structlog

from app.access import audit
from app.db.addresses import database_url
from app.db.session import Asker, transaction
from app.db.tenants import next_tenant
from app.errors import UnavailableError, UsageError
from app.search.indexes import keep
from app.settings import settings
from app.store.disk import disk
from app.upkeep import leftovers
from app.upkeep.reconcile import reconcile
from app.upkeep.reseal import reseal

log = structlog.get_logger("relay")
Step = Callable[[threading.Event], None]


def start(stop: threading.Event) -> threading.Thread:
    """Start all maintenance. The returned thread ends soon after `stop` is set."""
    # In separate threads, because going through all banks takes longer than a poll may.
    rows = threading.Thread(target=rows_regularly, args=(stop,), name="maintenance")
    rows.start()
    # Nothing waits for an index build in progress: the database finishes it alone.
    threading.Thread(target=indexes_regularly, args=(stop,), name="indexes", daemon=True).start()
    return rows


def rows_regularly(stop: threading.Event) -> None:
    """Repair what triggers missed, encrypt what should be, and remove what has expired."""
    steps = (_reconcile, _reseal, _expire, _objects, _cache)
    _regularly(stop, steps, settings().reconcile_seconds)


def indexes_regularly(stop: threading.Event) -> None:
    """Make vector indexes for banks that have grown large, and drop those no longer needed."""
    _regularly(stop, (_indexes,), settings().maintain_seconds)


def _regularly(stop: threading.Event, steps: Sequence[Step], seconds: float) -> None:
    """Run the steps at once, and then again after every interval, until `stop` is set."""
    while not stop.is_set():
        for step in steps:
            try:
                step(stop)
            except Exception as error:  # the next run may succeed, so the thread must go on
                reason = f"{type(error).__name__}: {error}"
                log.warning("maintenance failed", step=step.__name__.strip("_"), reason=reason)
        stop.wait(seconds)


def _reconcile(stop: threading.Event) -> None:
    found = reconcile(stop)
    if found.any:
        log.warning("repaired changes that triggers missed", **asdict(found))
    elif found.former_memories:
        log.info("memories of former profiles removed", memories=found.former_memories)


def _reseal(stop: threading.Event) -> None:
    done = reseal(stop)
    if done.any:
        level = log.warning if done.faults else log.info
        level("memories re-encrypted", **asdict(done))


def _expire(stop: threading.Event) -> None:
    days, tenant = settings().audit_days, next_tenant(0)
    while tenant is not None and not stop.is_set():
        gone = 1 if days else 0
        while gone and not stop.is_set():
            with transaction(Asker("worker", tenant)) as connection:
                gone = audit.expire(connection, tenant, days)
        tenant = next_tenant(tenant)


def _objects(stop: threading.Event) -> None:
    if removed := leftovers.collect(stop):
        log.info("objects of forgotten memories removed", objects=removed)


def _cache(stop: threading.Event) -> None:
    folder = disk()
    if folder and (removed := folder.sweep(stop)):
        log.info("cache entries of forgotten memories removed", files=removed)


def _indexes(stop: threading.Event) -> None:
    try:
        database_url("owner")
    except (UsageError, UnavailableError):
        # Only the tables' owner can make indexes, and not every relay can log in as owner.
        log.info("vector indexes are left to membank maintain: no MEMBANK_OWNER_DATABASE_URL")
        stop.wait()
        return
    kept = keep(settings().hnsw_from, stop)
    if kept.made or kept.dropped:
        log.info("vector indexes", made=kept.made, dropped=kept.dropped)
