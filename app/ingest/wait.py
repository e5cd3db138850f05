"""Wait until what was ingested is encoded, and say how far it is."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from app.db.session import Asker, transaction
from app.ingest.document import Failure
from app.ingest.storing import Ingested
from app.queue import status


@dataclass(frozen=True)
class Progress:
    """Counts over everything waited for. Done when nothing is pending."""

    chunks: int
    memories: int
    pending: int
    failed: int


def wait(documents: Sequence[Ingested], every: float = 0.5) -> Iterator[Progress]:
    """Yield the progress until nothing is pending. Stopping early leaves the work going on."""
    while True:
        now = _progress(documents)
        yield now
        if not now.pending:
            return
        time.sleep(every)


def failures(documents: Sequence[Ingested]) -> list[Failure]:
    """What the workers gave up on."""
    found = []
    for tenant, bank, ids in _by_bank(documents):
        with transaction(Asker("worker", tenant)) as connection:
            failed = status.failures(connection, tenant, bank, ids)
        found += [Failure(source, error) for source, error in failed]
    return found


def _progress(documents: Sequence[Ingested]) -> Progress:
    total = {"chunks": 0, "memories": 0, "pending": 0, "failed": 0}
    for tenant, bank, ids in _by_bank(documents):
        with transaction(Asker("worker", tenant)) as connection:
            now = status.progress(connection, tenant, bank, ids)
        for name, count in now.items():
            total[name] += count
    return Progress(**total)


def _by_bank(documents: Sequence[Ingested]) -> list[tuple[int, int, list[str]]]:
    key: Callable[[Ingested], tuple[int, int]] = lambda d: (d.tenant, d.bank)  # noqa: E731
    return [
        (tenant, bank, [d.id for d in some])
        for (tenant, bank), some in groupby(sorted(documents, key=key), key=key)
    ]
