"""The cost of loading sealed memories instead of plain ones, and of an audit note.

The same documents are encoded for two tenants, and those of one are sealed; the two take turns.
Fetching includes unsealing; loading also includes decoding, as for an answer.
"""

import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from app.access.audit import note
from app.access.principals import add_principal
from app.access.quota import Quota, count_request, count_tokens, set_quota
from app.access.tenants import of_tenant
from app.answer.retrieval import Reader, Request, found_for, load
from app.db.session import transaction
from app.demo.sample import HANDBOOKS, temporary_stack
from app.errors import UsageError
from app.ingest.command import run as ingest
from app.process import console
from app.runtime.models import models
from app.search.search import Passage
from app.store.blobs import load_blobs
from app.upkeep.reseal import Resealed, reseal_tenant
from benchmarks.variables import WITHOUT_CACHE, variables

_BANK, _PLAIN, _SEALED = "handbook", "plain", "sealed"
Times = dict[str, float]


def run(n: int, ks: Sequence[int], as_json: bool) -> None:
    """Measure medians over n loads of each kind, in milliseconds."""
    master = b64encode(secrets.token_bytes(32)).decode()
    # The stack's worker and relay have no master key, so they leave everything plain.
    given = {"MEMBANK_MASTER_KEY": master, **WITHOUT_CACHE}
    with temporary_stack(lambda _: None), variables(**given):
        requests = {tenant: filled(tenant).begin() for tenant in (_PLAIN, _SEALED)}
        reseal_tenant(requests[_SEALED].asker.tenant or 0, Resealed())
        found = {
            tenant: found_for(requests[tenant], "time off", 100, -1.0).passages
            for tenant in requests
        }
        if len(found[_PLAIN]) < max(ks):
            raise UsageError(f"the sample has only {len(found[_PLAIN])} memories: lower -k")
        size = _size(requests[_PLAIN], found[_PLAIN])
        rows = [_row(requests, found, k, n) for k in ks]
        notes = _notes(requests[_PLAIN], n)
    if as_json:
        console.print_json({"bytes_of_a_memory": size, "n": n, "by_k": rows, "notes_ms": notes})
        return
    head = ["k", "fetch", "fetch sealed", "load", "load sealed", "load more by %"]
    cells: list[list[object]] = [
        [row["k"], *(round(row[h.replace(" ", "_")], 2) for h in head[1:5]), round(row["more"], 1)]
        for row in rows
    ]
    console.table(f"Memories of {size} bytes, milliseconds, median of {n}", head, cells)
    console.table("A question's bookkeeping, milliseconds", list(notes), [[*notes.values()]])


def filled(tenant: str, backwards: bool = False) -> Reader:
    """Fill a tenant with all handbooks as one text, and return its reader.

    The text has no headings, so that chunks are as long as they can be. `backwards` reverses its
    lines, which gives different chunks.
    """
    lines = [line for f in sorted(HANDBOOKS.glob("*/*.md")) for line in f.read_text().splitlines()]
    if backwards:
        lines.reverse()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "all.txt"
        file.write_text(" ".join(line for line in lines if not line.startswith("#")))
        ingest([file], tenant, _BANK, None, True, True)
    with of_tenant("admin", tenant) as (connection, asker):
        add_principal(connection, asker.tenant or 0, "reader")
    return Reader.of(tenant, _BANK, "reader")


def _size(request: Request, passages: Sequence[Passage]) -> int:
    """Median size of a memory in bytes."""
    blobs = load_blobs(request.asker, request.profile, [p.id for p in passages])
    return int(median(len(blob) for blob in blobs.values()))


def _row(
    requests: dict[str, Request], found: dict[str, list[Passage]], k: int, n: int
) -> dict[str, float]:
    dtype = models().lm.dtype
    steps: dict[str, Callable[[], object]] = {}
    for tenant, suffix in ((_PLAIN, ""), (_SEALED, "_sealed")):
        request, passages = requests[tenant], found[tenant][:k]
        ids = [p.id for p in passages]
        steps["fetch" + suffix] = lambda r=request, i=ids: load_blobs(r.asker, r.profile, i)  # type: ignore[misc]
        steps["load" + suffix] = lambda r=request, p=passages: load(r, p, dtype)  # type: ignore[misc]
    times = _medians(steps, n)
    return {"k": k, **times, "more": 100 * (times["load_sealed"] / times["load"] - 1)}


def _notes(request: Request, n: int) -> Times:
    """Measure audit notes with limits set, so that these are checked too."""
    asker = request.asker
    with transaction(asker.in_role("admin")) as connection:
        set_quota(connection, asker.tenant or 0, Quota(None, None, 10**9, 10**9))

    def record() -> None:
        with transaction(asker) as connection:
            note(connection, asker.tenant, "ask", request.bank, ["d"], [1], {"mode": "memory"})
            count_tokens(connection, 1)

    def begin() -> None:
        with transaction(asker) as connection:
            count_request(connection, asker)

    def nothing() -> None:
        with transaction(asker):
            pass

    steps = {"empty": nothing, "begin": begin, "record": record}
    return {name: round(value, 2) for name, value in _medians(steps, n).items()}


def _medians(steps: Mapping[str, Callable[[], object]], n: int) -> Times:
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(n + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 3:  # the first ones open connections
                spent[name].append((time.perf_counter() - started) * 1000)
    return {name: median(values) for name, values in spent.items()}
