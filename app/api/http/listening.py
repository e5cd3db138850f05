"""Where the HTTP service of this home listens: the port is kept, so that clients find it again."""

import json
import socket
from pathlib import Path

from app.errors import UnavailableError
from app.process.private_files import private_folder, write_private
from app.settings import settings

_FIRST, _LAST = 8000, 65_535
_ANY = ("0.0.0.0", "::", "")  # noqa: S104 (compared with, not listened on)


def listen() -> socket.socket:
    """A listening socket at MEMBANK_API_HOST and MEMBANK_API_PORT.

    Port 0: the one that this home had before, else the first free one from 8000 on.
    Raises UnavailableError when the address cannot be had.
    """
    chosen = settings()
    if chosen.api_port:
        return _listening(chosen.api_port)
    last = _kept()
    for port in (*([last] if last else []), *range(_FIRST, _LAST + 1)):
        try:
            listening = _listening(port)
        except UnavailableError:
            continue
        _keep(port)
        return listening
    raise UnavailableError(
        f"no port from {_FIRST} on is free at {chosen.api_host}: correct MEMBANK_API_HOST,"
        " or set MEMBANK_API_PORT"
    )


def url() -> str | None:
    """Address of the service that this home runs, or ran last; None before its first start."""
    port = settings().api_port or _kept()
    host = settings().api_host
    if port is None:
        return None
    name = "127.0.0.1" if host in _ANY else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _listening(port: int) -> socket.socket:
    host = settings().api_host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        made = socket.socket(family, kind, protocol)  # or asyncio would not know TCP by it
    except OSError as error:
        raise _unusable(host, port, error) from None
    try:
        # A port of closed connections is free; one that somebody listens on is not.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        raise _unusable(host, port, error) from None
    return made


def _unusable(host: str, port: int, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"the HTTP service cannot listen on {host}:{port} ({error.strerror}): correct"
        " MEMBANK_API_HOST or MEMBANK_API_PORT"
    )


def _file() -> Path:
    return settings().home / "api.json"


def _kept() -> int | None:
    try:
        port = int(json.loads(_file().read_text(encoding="utf-8"))["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return port if 0 < port <= _LAST else None


def _keep(port: int) -> None:
    private_folder(settings().home)
    write_private(_file(), json.dumps({"port": port}) + "\n")
