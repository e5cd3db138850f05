"""The HTTP service's process: checks the database, loads the models, listens until SIGTERM."""

import signal
import socket
import sys
import threading

import structlog
import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from app.answer.cache import cache
from app.answer.engine import Engine
from app.api.application import create
from app.api.http.listening import listen
from app.db import session
from app.db.addresses import administers
from app.db.schema import await_safe
from app.errors import MembankError
from app.memory.decode.flat import Start
from app.process.console import quiet
from app.process.log import configure
from app.runtime.models import generator
from app.settings import settings

_DRAIN_SECONDS = 30


def main() -> None:
    """Run until SIGTERM; then take no further requests, and end when those in progress are done, or
    after 30 seconds."""
    quiet()
    configure(settings().log_level)
    log = structlog.get_logger("api")
    await_safe(log, threading.Event(), "app")
    try:
        administers()  # what it lacks for administration is told now, not at the first request
        engine = Engine(settings().max_batch, load=_load)
        engine.loaded.result()
        listening = listen()
    except MembankError as error:
        log.error("does not start", reason=str(error))
        sys.exit(1)
    # uvicorn raises the signal that ended it once more when it is done.
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(
        create(engine),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    stop = threading.Event()
    sweeper = threading.Thread(target=sweep, args=(stop,), name="sweep")
    sweeper.start()
    _Server(config).run([listening])
    stop.set()
    sweeper.join()
    engine.close()
    session.dispose()
    log.info("stopped")


def _load() -> None:
    """Load the model that answers from memory, and read one batch: the first is slower."""
    start = Start([0], 0)
    generator("memory").decoder.read([start, start])


def sweep(stop: threading.Event) -> None:
    """Until `stop` is set, remove forgotten documents' memories from the cache tiers."""
    log = structlog.get_logger("api")
    while not stop.wait(settings().reconcile_seconds):
        try:
            if removed := cache().sweep(stop):
                log.info("cached memories of what was forgotten removed", entries=removed)
        except (MembankError, SQLAlchemyError) as error:
            log.warning("cannot look for what was forgotten", reason=str(error))


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        structlog.get_logger("api").info("started", host=host, port=port)


if __name__ == "__main__":
    main()
