"""What the embedded servers share: a data folder, a port, a password, and how they are started."""

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from filelock import FileLock

from app.db.endpoint import Endpoint
from app.errors import UnavailableError
from app.local.processes import Process, Processes, wait_until
from app.process.private_files import private_folder

_ATTEMPTS = 3
_READY_SECONDS = 60.0


class EmbeddedServer(ABC):
    """A server that belongs to a home: data in HOME/NAME, port and password in HOME/NAME.json."""

    name: ClassVar[str]
    title: ClassVar[str]
    program: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    orphan_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_seconds: ClassVar[float] = 10.0

    def __init__(self, home: Path, processes: Processes) -> None:
        self.home = home.resolve()
        self.folder = self.home / self.name
        self._processes = processes
        self._endpoint_file = self.home / f"{self.name}.json"

    @property
    def url(self) -> str:
        """The URL that clients connect to, including the password.

        Raises UnavailableError when the server has never been started.
        """
        return self._url(Endpoint.of(self.home, self.name))

    def start(self) -> Process:
        """Start the server unless it is already running, and wait until it answers.

        Raises UnavailableError when it does not answer in time.
        """
        private_folder(self.home)
        with FileLock(self.home / f"{self.name}.lock"):
            process = self._processes.get(self.name)
            endpoint = Endpoint.load(self._endpoint_file)
            if process is None or endpoint is None:
                return self._launch(endpoint or self._first_endpoint())
            if not self._comes_to_answer(endpoint):
                return self._launch(endpoint)
            return process

    def stop(self) -> None:
        """End the server, and any processes that a killed one left in its data folder.

        Raises UnavailableError when a process cannot be ended.
        """
        self._processes.stop(self.name, self.stop_signal, self.stop_seconds)
        self._processes.end_orphans(self.program, self.folder, self.orphan_signal)

    def _launch(self, endpoint: Endpoint) -> Process:
        for _ in range(_ATTEMPTS):
            # Processes left by a killed predecessor may hold its data, shared memory or port.
            self.stop()
            endpoint = endpoint.on_free_port()
            endpoint.save(self._endpoint_file)
            self._prepare(endpoint)
            process = self._processes.start(self.name, self._command(endpoint))
            if self._comes_to_answer(endpoint):
                return process
        raise UnavailableError(f"{self.title} exited immediately; {self._log_says()}")

    def _comes_to_answer(self, endpoint: Endpoint) -> bool:
        """Wait for the first answer; return False if the process ends before giving one."""
        refusal: str | None = "no answer"

        def is_settled() -> bool:
            nonlocal refusal
            refusal = self._refusal(endpoint)
            return refusal is None or self._processes.get(self.name) is None

        if not wait_until(is_settled, _READY_SECONDS):
            raise UnavailableError(
                f"{self.title} is running but has not answered for {_READY_SECONDS:.0f} s"
                f" ({' '.join((refusal or '').split())}): run `membank up` again to wait longer;"
                f" {self._log_says()}"
            )
        return refusal is None

    def _log_says(self) -> str:
        tail = " | ".join(self._processes.tail(self.name).splitlines())
        return f"its log in {self.home / 'logs' / self.name}.log says: {tail or 'nothing'}"

    def _first_endpoint(self) -> Endpoint:
        return Endpoint.new()

    @abstractmethod
    def _url(self, endpoint: Endpoint) -> str:
        """The URL that clients connect to, including the password."""

    @abstractmethod
    def _prepare(self, endpoint: Endpoint) -> None:
        """Prepare the data folder for a start."""

    @abstractmethod
    def _command(self, endpoint: Endpoint) -> list[str]:
        """The command that runs the server in the foreground."""

    @abstractmethod
    def _refusal(self, endpoint: Endpoint) -> str | None:
        """Why the server cannot be used yet, or None once it can."""
