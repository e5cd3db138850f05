"""An ingest from the command's side: route to tenants, show progress, sum up."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.access.lists import checked_access
from app.access.tenants import add_tenant, of_tenant, paused_name, tenant_id
from app.bank.banks import add_bank
from app.bank.find import Bank, find_bank
from app.db.session import Asker, transaction
from app.errors import NotFoundError, UnavailableError, UsageError
from app.ingest.document import Document, Failure
from app.ingest.storing import Ingested, ingest
from app.ingest.wait import Progress, failures, wait
from app.process import console
from app.queue.broker import require_broker
from app.runtime.identity import count_tokens, profile, require_splitting
from app.settings import settings

_SILENCE = 60.0


@dataclass(frozen=True)
class Report:
    """What an ingest did. `memories` counts those that were ready at its end."""

    documents: list[Ingested]
    failed: list[Failure]
    chunks: int
    memories: int
    pending: int
    seconds: float
    asleep: str | None = None
    """Why nobody is woken to encode what was stored, if so."""

    def json(self) -> dict[str, Any]:
        bad = {failure.source for failure in self.failed}
        return {
            "documents": [
                {
                    "id": d.id,
                    "source": d.source,
                    "status": "failed" if d.source in bad else d.status,
                }
                for d in self.documents
            ],
            "failed": [{"source": f.source, "error": f.error} for f in self.failed],
            "chunks": self.chunks,
            "memories": self.memories,
            "pending": self.pending,
            "seconds": round(self.seconds, 2),
        }

    def summary(self) -> str:
        counts = {
            status: sum(d.status == status for d in self.documents)
            for status in ("new", "changed", "unchanged")
        }
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        rest = f"; {self.pending} are being encoded (membank status)" if self.pending else ""
        return (
            f"{len(self.documents)} documents ({told or 'none'}), {self.chunks} chunks,"
            f" {self.memories} memories, {len(self.failed)} failed,"
            f" {self.seconds:.1f} s{rest}"
        )


def run(
    paths: Sequence[Path],
    tenant: str | None,
    bank: str,
    allow: tuple[str, ...] | None,
    create: bool,
    until_encoded: bool,
) -> Report:
    """Store what is under `paths` and, if wanted, wait until it is encoded.

    Raises NotFoundError before anything is read when tenant, bank or an access entry is unknown.
    """
    started = time.monotonic()
    routes = _Routes(tenant, bank, allow, create)
    documents: list[Ingested] = []
    failed: list[Failure] = []
    with console.progress() as bar:
        task = bar.add_task("storing", total=None, rate="")
        limit = settings().max_document_bytes
        for result in ingest(paths, routes.bank_of, allow, count_tokens, limit):
            (documents if isinstance(result, Ingested) else failed).append(result)  # type: ignore[arg-type]
            bar.update(task, completed=len(documents) + len(failed))
        bar.update(task, total=len(documents) + len(failed))
    asleep = _asleep() if documents else None
    if until_encoded:
        asleep = asleep or _paused({document.tenant for document in documents})
    last = _encoded(documents) if until_encoded and not asleep else next(wait(documents))
    if until_encoded:
        failed.extend(failures(documents))
    seconds = time.monotonic() - started
    return Report(documents, failed, last.chunks, last.memories, last.pending, seconds, asleep)


class _Routes:
    """Which bank a document goes to."""

    def __init__(
        self, tenant: str | None, bank: str, allow: tuple[str, ...] | None, create: bool
    ) -> None:
        self._bank, self._create = bank, create
        self._known: dict[str, Bank] = {}
        self._only = self._find(tenant) if tenant is not None else None
        if self._only is not None and allow:
            with transaction(Asker("app", self._only.tenant)) as connection:
                checked_access(connection, self._only.tenant, allow)

    def bank_of(self, document: Document) -> Bank:
        if self._only is not None:
            return self._only
        if document.tenant is None:
            raise UsageError("names no tenant: give --tenant, or a `tenant` field in the JSONL row")
        return self._find(document.tenant)

    def _find(self, tenant: str) -> Bank:
        if tenant not in self._known:
            bank = self._made(tenant) if self._create else self._there(tenant)
            require_splitting(bank)
            self._known[tenant] = bank
        return self._known[tenant]

    def _there(self, tenant: str) -> Bank:
        with of_tenant("app", tenant) as (connection, owner):
            return find_bank(connection, owner.tenant or 0, self._bank)

    def _made(self, name: str) -> Bank:
        encoder = profile()
        with transaction(Asker("admin")) as connection:
            try:
                tenant = tenant_id(connection, name)
            except NotFoundError:
                tenant = add_tenant(connection, name)
            try:
                return find_bank(connection, tenant, self._bank)
            except NotFoundError:
                return add_bank(connection, tenant, self._bank, encoder.id, encoder.json())


def _paused(tenants: Collection[int]) -> str | None:
    for tenant in sorted(tenants):
        with transaction(Asker("app", tenant)) as connection:
            name = paused_name(connection, tenant)
        if name:
            return (
                f"tenant {name!r} is paused, so what was stored waits in the outbox:"
                f" membank tenant resume {name!r}"
            )
    return None


def _asleep() -> str | None:
    try:
        require_broker()
    except UnavailableError as error:
        return f"{error}; what was stored waits in the outbox and nothing is lost"
    return None


def _encoded(documents: Sequence[Ingested]) -> Progress:
    """Wait with a bar. Ctrl-C ends the waiting, not the work."""
    started, first = time.monotonic(), -1
    last, moved = -1, started
    now = Progress(0, 0, 0, 0)
    try:
        with console.progress() as bar:
            task = bar.add_task("encoding", total=None, rate="")
            for now in wait(documents):
                first = now.memories if first < 0 else first
                rate = (now.memories - first) / max(time.monotonic() - started, 1e-9)
                moved = time.monotonic() if now.memories != last else moved
                last = now.memories
                if time.monotonic() - moved > _SILENCE:
                    moved = time.monotonic()
                    bar.console.print(
                        f"nothing encoded for {_SILENCE:.0f} s: does a worker run? membank status"
                    )
                bar.update(
                    task, completed=now.memories, total=max(now.chunks, 1), rate=f"{rate:.1f}/s"
                )
    except KeyboardInterrupt:
        console.complain("no longer waiting; the workers go on: membank status")
    return now
