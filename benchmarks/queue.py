"""The queue: rows through trigger, relay and claim, and a whole pipeline beside the bare encoder.

Rows are of a profile that no worker has, so that only the database is measured. The pipeline is a
real worker woken by a real relay, its model loaded, from the reading of the files to the last
memory; beside it the same chunks go through the encoder alone, in this process, with the same
threads. With more workers the same files go through again.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from app.access.tenants import add_tenant, of_tenant
from app.bank import documents
from app.bank.banks import add_bank
from app.bank.documents import Draft, Piece
from app.bank.find import Bank, find_bank
from app.db.session import Asker, transaction
from app.demo.sample import HANDBOOKS, temporary_stack
from app.errors import UsageError
from app.ingest.command import run as ingest
from app.ingest.split import chunk_hash
from app.local.processes import wait_until
from app.local.stack import Stack
from app.process import console
from app.queue import outbox, status
from app.queue.outbox import Work
from app.runtime.identity import profile
from app.runtime.models import models
from app.settings import settings

_CHUNKS_OF_A_DOCUMENT = 100
_LONGEST = 3600.0
_NOBODYS = "of no worker"
"""A profile."""
_MEASURED, _WARM, _BANK = "measured-", "warm-", "pipeline"


def run(rows: int, paths: Sequence[Path], workers: int, as_json: bool) -> None:
    """Measure both. `paths`: what is ingested; the sample handbooks by default.

    workers: more than one are measured beside one.
    """
    given = list(paths) or [HANDBOOKS]
    with temporary_stack(lambda _: None, ["relay"]) as stack:
        from workers.tasks import rows_of_a_claim  # it asks for the stack's Valkey

        size = rows_of_a_claim()
        passed = _rows(rows, size)
        pipelines = [_pipeline(stack, count, given, size) for count in sorted({1, workers})]
        alone = _encoder_alone(size)
    for pipeline in pipelines:
        pipeline |= {"encoder alone": alone, "ratio": pipeline["ingest and encode"] / alone}
    if as_json:
        console.print_json({"rows": passed, "pipelines": pipelines})
        return
    console.table(
        f"{rows} rows, rows a second", list(passed), [[round(x) for x in passed.values()]]
    )
    console.table(
        "chunks a second",
        list(pipelines[0]),
        [[round(x, 2) for x in pipeline.values()] for pipeline in pipelines],
    )


def _rows(count: int, size: int) -> dict[str, float]:
    """Rows a second of each step, and of some together. Rows of one tenant, as in a bulk load."""
    with transaction(Asker("admin")) as connection:
        bank = add_bank(connection, add_tenant(connection, "rows"), "rows", _NOBODYS, "{}")
    spent: dict[str, float] = defaultdict(float)
    with _timed(spent, "trigger"):
        for number in range(count // _CHUNKS_OF_A_DOCUMENT):
            _store(bank, number)
    with _timed(spent, "relay"):
        waiting = outbox.waiting_profiles()
    done = 0
    while _NOBODYS in waiting:
        with _timed(spent, "claim"):
            work = outbox.claim(_NOBODYS, size, settings().lease_seconds)
        with _timed(spent, "finish"):
            done += _finished(bank.tenant, work)
        if not work:
            break
    speeds = {name: done / seconds for name, seconds in spent.items()}
    all_of_it = sum(spent.values())
    return speeds | {
        "trigger, relay and claim": done / (all_of_it - spent["finish"]),
        "all": done / all_of_it,
    }


def _finished(tenant: int, work: Sequence[Work]) -> int:
    """Take rows out of the outbox as a worker does that has nothing to write."""
    if not work:
        return 0
    with transaction(Asker("worker", tenant)) as connection:
        return connection.execute(
            text(
                "DELETE FROM outbox WHERE tenant_id = :tenant AND id = ANY(:ids)"
                " AND lease_token = :token"
            ),
            {"tenant": tenant, "ids": [one.id for one in work], "token": work[0].token},
        ).rowcount


def _encoded() -> None:
    # Seldom: every look takes from the worker's cores.
    if not wait_until(_idle, _LONGEST, 0.5):
        raise UsageError("the worker does not finish: see membank status and its log")


def _idle() -> bool:
    with transaction(Asker("admin")) as connection:
        return not any(status.queue(connection).values())


@contextmanager
def _timed(spent: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[step] += time.perf_counter() - started


def _store(bank: Bank, number: int) -> None:
    pieces = [
        Piece(f"{number} {i}", "", 0, 1, chunk_hash(f"{number} {i}"))
        for i in range(_CHUNKS_OF_A_DOCUMENT)
    ]
    draft = Draft(f"d{number}", "bench", "Rows", f"rows {number}", None, {})
    _put(bank, draft, pieces)


def _put(bank: Bank, draft: Draft, pieces: Sequence[Piece] | None) -> None:
    asker = Asker("worker", bank.tenant)
    with transaction(asker) as connection:
        documents.store(connection, asker, bank.id, draft, pieces)


def _pipeline(stack: Stack, workers: int, paths: list[Path], size: int) -> dict[str, float]:
    """Chunks a second from the reading of the files to the last memory, models loaded before."""
    stack.processes.stop("worker", timeout=_LONGEST)
    for _ in stack.workers(workers):
        pass
    warm = _bank(f"{_WARM}{workers}")
    for number in range(workers * size):  # a claim for each, so that all of them load their models
        draft = Draft(f"d{number}", "bench", "First", f"First text {number}.", None, {})
        _put(warm, draft, None)
    _encoded()
    tenant = f"{_MEASURED}{workers}"
    _bank(tenant)
    started = time.perf_counter()
    report = ingest(paths, tenant, _BANK, None, False, False)
    if not report.chunks:
        raise UsageError("there is nothing to encode under the given paths")
    _encoded()
    seconds = time.perf_counter() - started
    return {
        "workers": float(workers),
        "chunks": float(report.chunks),
        "ingest and encode": report.chunks / seconds,
    }


def _bank(tenant: str) -> Bank:
    encoder = profile()
    with transaction(Asker("admin")) as connection:
        number = add_tenant(connection, tenant)
        return add_bank(connection, number, _BANK, encoder.id, encoder.json())


def _encoder_alone(size: int) -> float:
    """Chunks a second of the encoder in this process, the chunks being those of one worker."""
    with of_tenant("app", f"{_MEASURED}1") as (connection, asker):
        bank = find_bank(connection, asker.tenant or 0, _BANK)
    with transaction(Asker("worker", bank.tenant)) as connection:
        texts = list(
            connection.execute(
                text("SELECT text FROM chunk WHERE tenant_id = :t ORDER BY id"),
                {"t": bank.tenant},
            ).scalars()
        )
    m = models()
    chunks = [m.prompt.chunk(one) for one in texts]
    m.encoder.encode(chunks[:8], settings().batch_tokens)
    started = time.perf_counter()
    for start in range(0, len(chunks), size):
        m.encoder.encode(chunks[start : start + size], settings().batch_tokens)
    return len(chunks) / (time.perf_counter() - started)
