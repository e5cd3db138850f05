"""The HTTP service's process: checks, models, then it listens until SIGTERM."""

import signal
import socket
import sys
import threading
from collections.abc import Iterator

import structlog
import uvicorn

from app.answer.generate import Generation, Read, Refresh, Streaming
from app.answer.question import Question
from app.answer.service import here
from app.api.service import create
from app.bank import session
from app.console import quiet
from app.errors import MembankError
from app.local.listening import listen
from app.log import configure
from app.runtime import generator
from app.settings import settings
from app.starting import require_safe

_DRAIN_SECONDS = 30
_model = threading.Lock()


def main() -> None:
    """Run until SIGTERM: it takes no further request then, and ends when those in hand are done, or
    after 30 seconds."""
    quiet()
    configure(settings().log_level)
    log = structlog.get_logger("api")
    require_safe(log, threading.Event(), "app")
    try:
        generator("memory")
        listening = listen()
    except MembankError as error:
        log.error("does not start", reason=str(error))
        sys.exit(1)
    # uvicorn raises the signal that ended it once more when it is done.
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(
        create(one_at_a_time),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    _Server(config).run([listening])
    session.dispose()
    log.info("stopped")


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        structlog.get_logger("api").info("started", host=host, port=port)


def one_at_a_time(
    question: Question, prompt: list[int], memories: Read, refresh: Refresh | None
) -> Streaming:
    """Compute in the thread that iterates, one answer after the other."""
    return _Turn(here(question, prompt, memories, refresh))


class _Turn:
    """An answer that waits for the model before its first token."""

    def __init__(self, stream: Streaming) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        with _model:
            yield from self._stream

    def generation(self) -> Generation:
        return self._stream.generation()

    def cancel(self) -> None:
        self._stream.cancel()


if __name__ == "__main__":
    main()
