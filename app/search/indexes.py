"""One vector index for each large bank, built and dropped while the service runs.

With one index over all tenants, the vectors of one tenant would affect what another finds, and how
fast. An index over one bank and profile holds nobody else's vectors, and a bank without an index is
searched exactly.

Indexes are made by the table's owner, who sees no rows under the policies, so memories are counted
as a worker, tenant by tenant.
"""

import hashlib
import threading
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy import text

from app.db.addresses import database_url
from app.db.session import Asker, driver_of, outside, transaction
from app.db.sql import statements
from app.db.tenants import next_tenant

PREFIX = "memory_key_near_"
"""Prefix of the indexes' names."""
_DIMENSIONS = 4000
"""The most dimensions of 16-bit numbers that pgvector can index."""
_LOCK = 727268
_LEAST_SHARE = 0.5
"""An index is dropped below this share of the threshold, so that none is made and dropped by
turns."""


@dataclass(frozen=True)
class Kept:
    """Names of the indexes that were made and dropped, and the number that exist now."""

    made: list[str]
    dropped: list[str]
    indexes: int


@dataclass(frozen=True)
class _Keys:
    """The keys of a bank under a profile: their number, and the dimensions of each."""

    tenant: int
    bank: int
    profile: str
    count: int
    dimensions: int


def index_name(tenant: int, bank: int, profile: str) -> str:
    """Name of a bank's index, whether or not it exists."""
    digest = hashlib.sha256(profile.encode()).hexdigest()
    return f"{PREFIX}{tenant}_{bank}_{digest[:8]}"


def keep(least: int, stop: threading.Event | None = None) -> Kept:
    """Make an index for every bank with at least `least` memories, and drop those of small banks.

    Takes up to a minute per 100,000 memories, and locks nothing that searches or workers need.
    Does nothing while another process is doing this, and starts no further index once `stop` is
    set. Raises UsageError when the owner's address is not known, UnavailableError.
    """
    with outside(database_url("owner"), "AUTOCOMMIT") as connection:
        owner = driver_of(connection)
        row = owner.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
        there = _there(owner)
        if row is None or not row[0]:
            return Kept([], [], sum(there.values()))
        return _keep(owner, there, least, stop or threading.Event())


def _keep(
    owner: psycopg.Connection, there: dict[str, bool], least: int, stop: threading.Event
) -> Kept:
    wanted = {
        index_name(keys.tenant, keys.bank, keys.profile): keys
        for keys in _large(least * _LEAST_SHARE)
    }
    # An invalid index was left by an interrupted build.
    dropped = [name for name, valid in there.items() if name not in wanted or not valid]
    for name in dropped:
        owner.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
    left = set(there) - set(dropped)
    made = []
    for name, keys in wanted.items():
        if name not in left and keys.count >= least and not stop.is_set():
            _make(owner, name, keys)
            made.append(name)
    return Kept(made, dropped, len(left) + len(made))


def _make(owner: psycopg.Connection, name: str, keys: _Keys) -> None:
    # The graph is built several times faster if it fits in this memory.
    megabytes = min(2048, 64 + keys.count * (keys.dimensions * 2 + 400) // 1_000_000)
    owner.execute(sql.SQL("SET maintenance_work_mem = {}").format(sql.Literal(f"{megabytes}MB")))
    owner.execute(
        sql.SQL(
            "CREATE INDEX CONCURRENTLY {name} ON memory_key"
            " USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)"
            " WITH (m = 16, ef_construction = 200)"
            " WHERE tenant_id = {tenant} AND bank_id = {bank} AND profile_id = {profile}"
        ).format(
            name=sql.Identifier(name),
            dimensions=sql.Literal(keys.dimensions),
            tenant=sql.Literal(keys.tenant),
            bank=sql.Literal(keys.bank),
            profile=sql.Literal(keys.profile),
        )
    )


def _there(owner: psycopg.Connection) -> dict[str, bool]:
    """The names of the existing indexes, and whether each is valid."""
    rows = owner.execute(
        "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = 'memory_key'::regclass AND starts_with(c.relname, %s)",
        (PREFIX,),
    )
    return dict(rows.fetchall())


_SQL = statements(__file__)
_COUNTED = text(_SQL["counted"])


def _large(least: float) -> list[_Keys]:
    """The banks and profiles of all tenants that have at least `least` keys."""
    found: list[_Keys] = []
    tenant = next_tenant(0)
    while tenant is not None:
        with transaction(Asker("worker", tenant)) as connection:
            rows = connection.execute(_COUNTED, {"tenant": tenant, "least": least}).all()
        found += [_Keys(tenant, *row) for row in rows if 0 < row.dimensions <= _DIMENSIONS]
        tenant = next_tenant(tenant)
    return found
