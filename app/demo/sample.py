"""Sample handbooks of two fictional companies, and a temporary stack to try them in."""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.access.principals import add_principal
from app.access.tenants import add_tenant
from app.bank.banks import add_bank
from app.db import session
from app.db.session import Asker, transaction
from app.errors import MembankError
from app.ingest.command import run as ingest
from app.local.stack import ENCODING, Stack
from app.runtime.identity import profile
from app.settings import settings

HANDBOOKS = Path(__file__).parent / "handbooks"
TENANTS = ("northwind", "harbor")
BANK = "handbook"


@dataclass(frozen=True)
class Question:
    """A question put to both companies; `answers` holds each company's accepted answers."""

    question: str
    file: str
    answers: dict[str, list[str]]
    group: str | None


@dataclass(frozen=True)
class Update:
    """A change of fact that an administrator makes with SQL."""

    tenant: str
    file: str
    old: str
    new: str
    question: str


def questions() -> list[Question]:
    return [Question(**row) for row in _data()["questions"]]


def update() -> Update:
    return Update(**_data()["update"])


@contextlib.contextmanager
def temporary_stack(
    tell: Callable[[str], None], services: Collection[str] = ENCODING
) -> Iterator[Stack]:
    """Run the embedded servers and `services` in a temporary home, which is deleted afterwards.

    Meanwhile this process's environment and settings point to that home, so that servers named in
    the user's settings are not touched.
    """
    home = Path(tempfile.mkdtemp(prefix="membank-demo-"))
    overridden = [
        "MEMBANK_HOME",
        "MEMBANK_REDIS_URL",
        "MEMBANK_CONTEXT_KEY",
        "MEMBANK_KEYRING",
        "MEMBANK_CACHE_FOLDER",
        "MEMBANK_BLOB_STORE",
        "MEMBANK_OLD_BLOB_STORE",
        *(f"MEMBANK_{role}DATABASE_URL" for role in ("", "OWNER_", "APP_", "WORKER_", "ADMIN_")),
    ]
    before = {name: os.environ.get(name) for name in overridden}
    os.environ.update(
        dict.fromkeys(overridden, "")
        | {
            "MEMBANK_HOME": str(home),
            "MEMBANK_KEYRING": str(home / "keyring"),
            "MEMBANK_CACHE_FOLDER": str(home / "cache"),
        }
    )
    settings.cache_clear()
    stack = Stack()
    try:
        _end_on_sigterm()
        for step in stack.servers():
            tell(f"{step.name} {step.detail}")
        for name in services:
            step = stack.service(name)
            tell(f"{step.name} {step.detail}")
        yield stack
    finally:
        session.dispose()
        stack.down()
        shutil.rmtree(home, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        settings.cache_clear()


def _end_on_sigterm() -> None:
    """Exit on SIGTERM, so that the servers do not outlive a run that is ended from outside."""

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def fill() -> int:
    """Create both tenants and their users, and ingest their handbooks.

    In each tenant, alice is in no group and hana is in `hr`. Returns the number of memories.
    Raises MembankError when anything fails.
    """
    restricted = {q.file for q in questions() if q.group == "hr"}
    memories = 0
    for tenant in TENANTS:
        encoder = profile()
        with transaction(Asker("admin")) as connection:
            number = add_tenant(connection, tenant)
            add_principal(connection, number, "alice")
            add_principal(connection, number, "hana", ["hr"])
            add_bank(connection, number, BANK, encoder.id, encoder.json())
        files = sorted((HANDBOOKS / tenant).glob("*.md"))
        for allow, some in (
            (("everyone",), [f for f in files if f.name not in restricted]),
            (("group:hr",), [f for f in files if f.name in restricted]),
        ):
            report = ingest(some, tenant, BANK, allow, create=False, until_encoded=True)
            if report.failed or report.memories != report.chunks:
                raise MembankError(f"the sample handbook of {tenant}: {report.summary()}")
            memories += report.memories
    return memories


def _data() -> dict[str, Any]:
    return json.loads((HANDBOOKS / "questions.json").read_text())  # type: ignore[no-any-return]
