"""Whether the service lives, and whether it can serve. What is wrong in detail is in the log."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import redis
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.db import schema
from app.db.addresses import administers, redis_url
from app.db.session import Asker, transaction
from app.errors import UnavailableError
from app.queue import status
from app.runtime.identity import profile
from app.runtime.models import loaded
from app.settings import settings

router = APIRouter(prefix="/health", tags=["operation"])
log = structlog.get_logger("health")

_LIMIT = 2.0
_FRESH = 1.0


class Probe:
    """A look at something, in a thread of its own, at most once in `fresh` seconds.

    A look that does not come back is waited for, not begun a second time.
    """

    def __init__(self, name: str, look: Callable[[], Any], fresh: float = _FRESH) -> None:
        self.name, self._look, self._fresh = name, look, fresh
        self._thread = ThreadPoolExecutor(1, f"probe-{name}")
        self._lock = threading.Lock()
        self._last: Future[Any] | None = None
        self._begun = 0.0

    def seen(self) -> "Future[Any]":
        """What it brings, perhaps not yet."""
        with self._lock:
            now = time.monotonic()
            if self._last is None or (self._last.done() and now - self._begun >= self._fresh):
                self._begun, self._last = now, self._thread.submit(self._look)
            return self._last

    def close(self) -> None:
        self._thread.shutdown(wait=False)


class Health:
    """What there is to look at; tells the log when it changes."""

    def __init__(self) -> None:
        self.backlog = Probe("backlog", _backlog, 5.0)
        self._probes = [
            Probe("database", _database),
            Probe("models", _models),
            Probe("valkey", _valkey),
        ]
        self._told: dict[str, str] = {}

    async def faults(self) -> dict[str, str]:
        """By the name of each check what is wrong, "" for nothing. Takes 2 seconds at most."""
        database, models, valkey, queue = await asyncio.gather(
            *(_within(probe) for probe in (*self._probes, self.backlog))
        )
        found = {"models": models if isinstance(models, str) else ""}
        if isinstance(database, str):
            found |= dict.fromkeys(("database", "migration", "isolation"), database)
        else:
            found |= {"database": "", **database}
        problem = valkey if isinstance(valkey, str) else ""
        found["queue"] = problem or (queue if isinstance(queue, str) else _stands(queue))
        for name, fault in found.items():
            if fault != self._told.get(name, ""):
                log.warning("not ready" if fault else "ready again", check=name, reason=fault)
        self._told = found
        return found

    def close(self) -> None:
        for probe in (*self._probes, self.backlog):
            probe.close()


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Whether requests can be served, and which check says no."""

    status: Literal["ready", "not ready"]
    checks: dict[str, Literal["good", "bad"]]


@router.get("/live")
async def live() -> Live:
    """Whether the process answers at all. One that does not should be started again."""
    return Live()


@router.get("/ready", responses={503: {"model": Ready}})
async def ready(request: Request) -> Ready:
    """Whether requests can be served: database, migration, isolation of tenants, models, queue."""
    faults = await request.app.state.health.faults()
    body = Ready(
        status="not ready" if any(faults.values()) else "ready",
        checks={name: "bad" if fault else "good" for name, fault in faults.items()},
    )
    if any(faults.values()):
        return JSONResponse(body.model_dump(), 503)  # type: ignore[return-value]
    return body


def prepare(app: FastAPI) -> None:
    """Let `app` have what the routes look at."""
    app.state.health = Health()


async def _within(probe: Probe) -> Any:
    """What a probe brings, or what is wrong as a text."""
    look = asyncio.wrap_future(probe.seen())
    # One that comes to nothing too late is of no use to anyone.
    look.add_done_callback(lambda late: late.cancelled() or late.exception())
    try:
        return await asyncio.wait_for(asyncio.shield(look), _LIMIT)
    except TimeoutError:
        return f"no answer within {_LIMIT:g} s"
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def _database() -> Mapping[str, str]:
    bad = [check for check in schema.checks() if not check.good]
    return {
        "migration": "; ".join(c.detail for c in bad if c.name == "migration"),
        "isolation": "; ".join(f"{c.name}: {c.detail}" for c in bad if c.name != "migration"),
    }


def _models() -> None:
    if not loaded():
        raise UnavailableError("the models are not loaded yet")


def _valkey() -> None:
    with redis.Redis.from_url(
        redis_url(), socket_timeout=_LIMIT, socket_connect_timeout=_LIMIT
    ) as valkey:
        valkey.ping()


def _backlog() -> dict[str, float]:
    """The administrator alone sees what has failed."""
    with transaction(Asker("worker")) as connection:
        backlog = status.backlog(connection, profile().id)
    if administers():
        with transaction(Asker("admin")) as connection:
            backlog["failed"] = status.queue(connection)["failed"]
    return backlog


def _stands(backlog: Mapping[str, float]) -> str:
    """Work that waits long is no fault while workers hold other work: then there is just a lot."""
    oldest = backlog["oldest_seconds"]
    if backlog["encoding"] or oldest <= settings().api_stale_seconds:
        return ""
    return f"work has been due for {oldest:.0f} s and no worker holds any"
