"""The stack on a single machine: Postgres, Valkey, the relay, workers and the HTTP service."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import URL

from app.api.http import listening
from app.db import schema
from app.db.addresses import database_url, redis_url
from app.errors import MembankError, UnavailableError
from app.local.postgres import EmbeddedPostgres
from app.local.processes import Process, Processes, wait_until
from app.local.valkey import EmbeddedValkey
from app.process.private_files import private_folder
from app.process.threads import cores
from app.queue.broker import require_broker
from app.settings import settings

# Entry points of the services; docker-compose.yml names the same ones.
SERVICES = {"worker": "workers.worker", "relay": "workers.relay", "api": "app.api.server"}
ENCODING = ("worker", "relay")
"""The services that make memories, which is all that most tests and benchmarks need."""
_READY = {"worker": " ready.", "relay": "event=started", "api": "event=started"}


@dataclass(frozen=True)
class Step:
    """Something that `up` has done, to report to the user who is waiting."""

    name: str
    detail: str


class Stack:
    """Everything that runs under MEMBANK_HOME. Servers named in the settings are used as they are,
    not started."""

    def __init__(self) -> None:
        self.home = settings().home.resolve()
        self.processes = Processes(self.home)
        self.postgres = (
            None if settings().database_url else EmbeddedPostgres(self.home, self.processes)
        )
        self.valkey = None if settings().redis_url else EmbeddedValkey(self.home, self.processes)

    def servers(self) -> list[Step]:
        """Start the embedded servers, and migrate the database to this version's schema."""
        private_folder(self.home)
        done = []
        for server in (self.postgres, self.valkey):
            if server is not None:
                process = server.start()
                done.append(Step(server.name, f"pid {process.pid}"))
        require_broker()
        schema.provision()
        schema.require_safe()
        done.append(Step("migrations", "at head"))
        return done

    def workers(self, count: int) -> Iterator[Step]:
        """Start worker, worker-2 and so on up to `count`, one per step of the iteration.

        Workers that are already running are left as they are. New ones share the cores, unless
        the settings say how many threads each may use.
        """
        share = {}
        if count > 1 and not settings().threads:
            share = {"MEMBANK_THREADS": str(max(1, cores() // count))}
        for name in ["worker", *(f"worker-{number}" for number in range(2, count + 1))]:
            yield self.service(name, share)

    def service(self, name: str, environment: Mapping[str, str] | None = None) -> Step:
        """Start a service unless it is already running, and wait until it is ready.

        `name` is one of SERVICES, followed by a number for a further process of it: `worker-2`.
        Raises UnavailableError with the end of its log when it exits or is not ready in 120 s.
        """
        running = self.processes.get(name)
        if running is not None:
            return Step(name, f"pid {running.pid}")
        log = self.home / "logs" / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        started = self.processes.start(
            name,
            [sys.executable, "-m", SERVICES[_kind(name)]],
            self._environment() | dict(environment or {}),
        )

        def settled() -> bool:
            with log.open("rb") as stream:
                stream.seek(before)
                ready = _READY[_kind(name)].encode() in stream.read()
            return ready or self.processes.get(name) is None

        in_time = wait_until(settled, 120)
        if self.processes.get(name) is None or not in_time:
            tail = " | ".join(self.processes.tail(name).splitlines())
            raise UnavailableError(f"the {name} did not start; {log} says: {tail}")
        return Step(name, f"pid {started.pid}")

    def down(self) -> list[str]:
        """End everything that was started under this home; return the names of what was running."""
        running = [process.name for process in self.processes.all()]
        services = [name for name in running if _kind(name) in SERVICES]
        for name in sorted({*SERVICES, *services}):
            # A worker finishes the batch in hand; the rest of the work stays in the outbox.
            self.processes.stop(name, signal.SIGTERM, 20.0)
        for server in (
            EmbeddedValkey(self.home, self.processes),
            EmbeddedPostgres(self.home, self.processes),
        ):
            server.stop()
        self.processes.end_strays()
        return running

    def running(self) -> list[Process]:
        return self.processes.all()

    def addresses(self) -> dict[str, str | None]:
        """URLs that clients connect to, including passwords; None where not known yet."""
        return {
            "database_url": _known(lambda: _plain(database_url("app"))),
            "admin_database_url": _known(lambda: _plain(database_url("admin"))),
            "redis_url": _known(redis_url),
            "api_url": listening.url() if self.processes.get("api") else None,
        }

    def _environment(self) -> dict[str, str]:
        return {"MEMBANK_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _known(address: Callable[[], str]) -> str | None:
    try:
        return address()
    except MembankError:
        return None
