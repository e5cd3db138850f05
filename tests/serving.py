"""A real server in a thread of the tests."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from app.local.processes import wait_until


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application while the block runs."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert wait_until(lambda: server.started, 30)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()


def free_port() -> int:
    """A port that nobody listens on, far from those that services choose by themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
