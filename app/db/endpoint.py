"""Where an embedded server listens and the password it asks for, kept between runs."""

import json
import secrets
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from app.errors import UnavailableError
from app.process.private_files import write_private

HOST = "127.0.0.1"
DATABASE = "membank"


@dataclass(frozen=True)
class Endpoint:
    """The port and the password of one embedded server; port 0 is one not chosen yet."""

    port: int
    password: str = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A fresh random password, and no port yet."""
        return cls(port=0, password=secrets.token_urlsafe(32))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What `save` wrote, or None where there is no such file.

        Raises UnavailableError when the file is there and cannot be used.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(port=int(values["port"]), password=str(values["password"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(
                f"{path} cannot be read ({error.strerror}): run membank as the user who owns it"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise UnavailableError(
                f"{path} is damaged: restore it, or move {path.parent} away to start afresh"
            ) from None

    @classmethod
    def of(cls, home: Path, name: str) -> Self:
        """That of the embedded server `name` in a home.

        Raises UnavailableError when the server was never started.
        """
        found = cls.load(home / f"{name}.json")
        if found is None:
            title, variable = _SERVERS[name]
            raise UnavailableError(
                "the local stack has not been started: run `membank up`,"
                f" or set {variable} to a {title} of yours"
            )
        return found

    def save(self, path: Path) -> None:
        """Write the endpoint, readable only by its owner."""
        write_private(path, json.dumps(asdict(self)) + "\n")

    def on_free_port(self) -> Self:
        """The same endpoint where nothing listens on its port, else on another port."""
        return self if self.port and _is_free(self.port) else replace(self, port=_any_free_port())


_SERVERS = {
    "postgres": ("Postgres", "MEMBANK_DATABASE_URL"),
    "valkey": ("Valkey", "MEMBANK_REDIS_URL"),
}


def postgres_url(endpoint: Endpoint, database: str = DATABASE) -> str:
    """A database of the embedded Postgres, logged in as its superuser."""
    return f"postgresql://postgres:{endpoint.password}@{HOST}:{endpoint.port}/{database}"


def valkey_url(endpoint: Endpoint) -> str:
    return f"redis://:{endpoint.password}@{HOST}:{endpoint.port}/0"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Ports of closed connections count as free, as they do for the servers.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
