"""Other ways to search the same keys: pgvector by hand, and langchain-postgres.

Both search a single table of all keys with a single HNSW index, and state tenant and access list as
conditions. They connect as superusers, so no policy costs them anything.
"""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psycopg
from pgvector import HalfVector
from sqlalchemy import make_url

from benchmarks.peer import PeerError
from benchmarks.search_rows import DIMENSIONS, SHARES, Array, Filled

Find = Callable[[int], list[int]]
"""Maps the number of a question to the ids that are found."""
PLAIN = ("one index", "one index, iterative", "and a B-tree of tenants")
LANGCHAIN = "langchain-postgres"
_SCRIPT = Path(__file__).with_name("langchain_peer.py")
_MEMORY = "2GB"
"""maintenance_work_mem for building an index, large enough to hold all of it."""


class Plain:
    """pgvector as its README first shows it; then with iterative scans; then also with a B-tree,
    which the planner uses for small tenants."""

    def __init__(self, url: str, clients: int) -> None:
        self._url, self._clients = url, clients
        self.seconds = 0.0

    def __enter__(self) -> "Plain":
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"SET maintenance_work_mem = '{_MEMORY}'".encode())
            connection.execute(
                "CREATE TABLE peer AS SELECT k.chunk_id AS id, k.tenant_id, d.access,"
                " k.embedding::halfvec(384) AS embedding FROM memory_key k"
                " JOIN document d ON d.tenant_id = k.tenant_id AND d.bank_id = k.bank_id"
                " AND d.id = k.document_id"
            )
            started = time.perf_counter()
            connection.execute("CREATE INDEX ON peer USING hnsw (embedding halfvec_cosine_ops)")
            self.seconds = time.perf_counter() - started
            connection.execute("VACUUM ANALYZE peer")
        self._all = [psycopg.connect(self._url, autocommit=True) for _ in range(self._clients)]
        self._free = _queue(self._all)
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._all:
            connection.close()

    def change(self, way: str) -> None:
        """Switch to one of the ways in PLAIN."""
        scan = "off" if way == PLAIN[0] else "strict_order"
        for connection in self._all:
            connection.execute("SELECT set_config('hnsw.iterative_scan', %s, false)", (scan,))
        if way == PLAIN[2]:
            self._all[0].execute("CREATE INDEX ON peer (tenant_id)")
            self._all[0].execute("ANALYZE peer")

    def finder(self, filled: Filled, share: int, keys: list[Array], k: int) -> Find:
        readers = [f"principal:reader{share}"]
        vectors = [HalfVector(key.tolist()).to_text() for key in keys]

        def find(i: int) -> list[int]:
            connection = self._free.get()
            try:
                rows = connection.execute(
                    "SELECT id FROM peer WHERE tenant_id = %s AND access && %s"
                    " ORDER BY embedding <=> %s::halfvec LIMIT %s",
                    (filled.bank.tenant, readers, vectors[i], k),
                ).fetchall()
            finally:
                self._free.put(connection)
            return [row[0] for row in rows]

        return find


@dataclass
class LangChain:
    """PGVectorStore with metadata columns for the tenant and each reader, and the index it makes.

    Each client has its own process. Enter it after Plain, whose table it is filled from. `python`
    is an interpreter that has langchain-postgres. Raises PeerError when it does not work.
    """

    url: str
    python: Path
    clients: int
    seconds: float = 0.0

    def __enter__(self) -> "LangChain":
        url = make_url(self.url).set(drivername="postgresql+psycopg")
        with_memory = url.update_query_dict({"options": f"-c maintenance_work_mem={_MEMORY}"})
        columns = ["tenant:BIGINT", *(f"reader{share}:BOOLEAN" for share in SHARES)]
        # Without this folder in its path, or it would import our queue.py instead of the library's.
        command = [str(self.python), "-P", str(_SCRIPT)]
        rest = [with_memory.render_as_string(False), str(DIMENSIONS), *columns]
        self._all: list[subprocess.Popen[str]] = [
            subprocess.Popen(
                [*command, *rest],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(self.clients)
        ]
        self._free = _queue(self._all)
        table = _told(self._all[0], {"make": True})["table"]
        readable = ", ".join(f"access && ARRAY['principal:reader{share}']" for share in SHARES)
        names = ", ".join(f"reader{share}" for share in SHARES)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                f"INSERT INTO {table} (id, content, embedding, tenant, {names})"  # noqa: S608 (names of ours)
                f" SELECT id, '', embedding::vector, tenant_id, {readable} FROM peer".encode()
            )
            started = time.perf_counter()
            _told(self._all[0], {"index": True})
            self.seconds = time.perf_counter() - started
            connection.execute(f"VACUUM ANALYZE {table}".encode())
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.communicate()

    def finder(self, filled: Filled, share: int, keys: list[Array], k: int) -> Find:
        where = {"tenant": filled.bank.tenant, f"reader{share}": True}
        asked = [{"vector": key.tolist(), "k": k, "filter": where} for key in keys]

        def find(i: int) -> list[int]:
            process = self._free.get()
            try:
                found: list[int] = _told(process, asked[i])["ids"]
            finally:
                self._free.put(process)
            return found

        return find


def _queue(items: list[Any]) -> "SimpleQueue[Any]":
    free: SimpleQueue[Any] = SimpleQueue()
    for item in items:
        free.put(item)
    return free


def _told(process: subprocess.Popen[str], asked: dict[str, Any]) -> dict[str, Any]:
    pipes: Any = process
    try:
        pipes.stdin.write(json.dumps(asked) + "\n")
        pipes.stdin.flush()
        answer: dict[str, Any] = json.loads(pipes.stdout.readline())
    except (OSError, ValueError):
        raise PeerError("benchmarks/langchain_peer.py gave no answer: is it installed?") from None
    return answer
