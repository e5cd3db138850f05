"""Starts the stack's processes detached from the terminal, finds them again, and ends them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from app.errors import UnavailableError
from app.process.private_files import private_folder, write_private

MARKER = "MEMBANK_STACK"

_SAME_START_SECONDS = 2.0
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02
_TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Process:
    """A process that was started under a name.

    `created` is the number of seconds between the machine's start and the process's own, which no
    clock correction changes. It distinguishes the process from a later one with the same pid.
    """

    name: str
    pid: int
    created: float
    log: Path


class Processes:
    """The named processes of one home: records in `run/NAME.json`, output in `logs/NAME.log`."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self._run = self.home / "run"
        self._logs = self.home / "logs"

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Process:
        """Start the command in its own session, or return the live process with that name.

        The command inherits this process's environment, updated with `env` and with MEMBANK_STACK
        set to the path of the home.

        Raises UnavailableError when the command cannot be run.
        """
        private_folder(self.home)
        private_folder(self._run)
        private_folder(self._logs)
        with FileLock(self._run / "start.lock"):
            process = self.get(name)
            if process is None:
                process = self._spawn(name, command, env or {})
                record = asdict(process) | {"log": str(process.log)}
                write_private(self._record(name), json.dumps(record) + "\n")
            return process

    def get(self, name: str) -> Process | None:
        """Return the process with that name if it is alive, otherwise None."""
        process = self._read(self._record(name))
        return process if process is not None and _find(process) is not None else None

    def all(self) -> list[Process]:
        """Return the live processes in order of name."""
        names = sorted(path.stem for path in self._run.glob("*.json"))
        return [process for name in names if (process := self.get(name)) is not None]

    def stop(
        self, name: str, stop_signal: signal.Signals = signal.SIGTERM, timeout: float = 10.0
    ) -> bool:
        """Ask the process to end; after `timeout` seconds, kill it and any remaining children.

        Returns whether the process was alive. Raises UnavailableError when it cannot be ended.
        """
        process = self._read(self._record(name))
        found = _find(process) if process is not None else None
        if found is not None:
            family = _with_children([found])
            _send([found], stop_signal)
            _kill(_with_children(_wait(family, timeout)))
        self._record(name).unlink(missing_ok=True)
        return found is not None

    def strays(self) -> list[psutil.Process]:
        """Return every process whose environment names this home, recorded or not.

        Leaves out this process, its ancestors, and processes that this user cannot inspect.
        """
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [p for p in psutil.process_iter() if p.pid not in own and self._is_marked(p)]

    def end_strays(self, timeout: float = 10.0) -> int:
        """End all strays with SIGTERM, and after `timeout` seconds with SIGKILL.

        Returns how many strays were found. Raises UnavailableError when one cannot be ended.
        """
        strays = self.strays()
        _end(strays, signal.SIGTERM, timeout)
        # A stray may have started another one while it was being ended.
        _kill(self.strays())
        return len(strays)

    def end_orphans(self, program: str, folder: Path, stop_signal: signal.Signals) -> None:
        """End all processes running `program` whose working directory is `folder`.

        Servers overwrite their environment with a process title, so the children of a killed
        server may carry no marker, but their working directory is still the data folder.

        Raises UnavailableError when one cannot be ended.
        """
        _end(
            [p for p in psutil.process_iter() if _is_in(p, program, folder.resolve())], stop_signal
        )

    def tail(self, name: str, lines: int = 5) -> str:
        """Return the last lines of the process's log that are not blank, "" if there are none."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def _spawn(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Process:
        log = self._log(name)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env, MARKER: str(self.home)},
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(
                f"{name} cannot be started because {command[0]} cannot be run: {error.strerror}"
            ) from None
        finally:
            os.close(handle)
        # The child is meant to outlive this process; without this line, Popen would warn that
        # nobody waited for it.
        child.returncode = 0
        return Process(name, child.pid, _created(psutil.Process(child.pid)), log)

    def _record(self, name: str) -> Path:
        return self._run / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _read(self, record: Path) -> Process | None:
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            pid, created = int(values["pid"]), float(values["created"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return Process(record.stem, pid, created, self._log(record.stem)) if pid > 0 else None

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARKER) == str(self.home)
        except (psutil.Error, OSError):
            return False


def wait_until(condition: Callable[[], bool], timeout: float, every: float = _POLL_SECONDS) -> bool:
    """Poll `condition` until it holds or `timeout` seconds have passed; return whether it holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _find(process: Process) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        same = abs(_created(found) - process.created) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return None
    return found if same and _is_alive(found) else None


def _created(process: psutil.Process) -> float:
    # psutil adds the boot time in whole seconds, which the system adjusts along with the clock.
    return process.create_time() - psutil.boot_time()


def _is_alive(process: psutil.Process) -> bool:
    try:
        if not process.is_running():
            return False
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    # Waiting for a zombie child of this process removes it, unless other threads of it are still
    # ending and hold the data and the port meanwhile. Other zombies are their parents' to collect.
    try:
        collected, _ = os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return False
    return collected == 0


def _is_in(process: psutil.Process, program: str, folder: Path) -> bool:
    try:
        return process.name() == program and process.cwd() == str(folder)
    except (psutil.Error, OSError):
        return False


def _with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    family: dict[psutil.Process, None] = {}
    for process in processes:
        family[process] = None
        with suppress(psutil.NoSuchProcess):
            family.update(dict.fromkeys(process.children(recursive=True)))
    return list(family)


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            raise UnavailableError(
                f"process {process.pid} belongs to another user: stop it as that user"
            ) from None


def _wait(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait at most `timeout` seconds for the processes to end; return those still alive."""
    # psutil.wait_procs will not do: it counts a zombie that nobody collects as alive.
    wait_until(lambda: not any(map(_is_alive, processes)), timeout)
    return [process for process in processes if _is_alive(process)]


def _end(
    processes: list[psutil.Process], stop_signal: signal.Signals, timeout: float = 10.0
) -> None:
    _send(processes, stop_signal)
    _kill(_wait(processes, timeout))


def _kill(processes: list[psutil.Process]) -> None:
    _send(processes, signal.SIGKILL)
    left = _wait(processes, _KILL_SECONDS)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise UnavailableError(f"SIGKILL did not end process {pids}: restart the machine")
