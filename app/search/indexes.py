"""One vector index for each large bank, made and dropped while everything goes on.

An index over all tenants would let the vectors of one decide what another finds, and how fast. One
of a single bank and profile holds nobody else's, and a bank without one is searched exactly.

Indexes are made by the owner of the table, whom policies let see no row: what is large is counted
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
from app.db.tenants import next_tenant

PREFIX = "memory_key_near_"
"""How their names begin."""
_DIMENSIONS = 4000
"""The most that pgvector indexes of 16-bit numbers."""
_LOCK = 727268
_LEAST_SHARE = 0.5
"""Of the threshold: an index is dropped below it, so that none comes and goes."""


@dataclass(frozen=True)
class Kept:
    """Names of the indexes that were made and dropped, and how many there are now."""

    made: list[str]
    dropped: list[str]
    indexes: int


@dataclass(frozen=True)
class _Keys:
    """Keys of a bank under a profile: how many, and how long each is."""

    tenant: int
    bank: int
    profile: str
    count: int
    dimensions: int


def index_name(tenant: int, bank: int, profile: str) -> str:
    """Name of a bank's index, whether it is there or not."""
    digest = hashlib.sha256(profile.encode()).hexdigest()
    return f"{PREFIX}{tenant}_{bank}_{digest[:8]}"


def keep(least: int, stop: threading.Event | None = None) -> Kept:
    """Make the index of every bank with `least` memories or more, drop those of small ones.

    Takes up to a minute for 100,000 memories, and locks nothing that searches or workers need. Does
    nothing while another process does the same, and begins no more once `stop` is set. Raises
    UsageError where the owner's address is not known, UnavailableError.
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
    # An index that is not valid is what a build that was broken off has left.
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
    # The graph is built several times faster where it fits into this.
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
    """The indexes that are there, and whether each can be used."""
    rows = owner.execute(
        "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = 'memory_key'::regclass AND starts_with(c.relname, %s)",
        (PREFIX,),
    )
    return dict(rows.fetchall())


_COUNTED = text(
    """
    SELECT c.bank_id, c.profile_id, c.count, (
        SELECT vector_dims(k.embedding) FROM memory_key k
        WHERE k.tenant_id = :tenant AND k.bank_id = c.bank_id AND k.profile_id = c.profile_id
        LIMIT 1) AS dimensions
    FROM (
        SELECT k.bank_id, k.profile_id, count(*) FROM memory_key k WHERE k.tenant_id = :tenant
        GROUP BY k.bank_id, k.profile_id HAVING count(*) >= :least) c
    """
)


def _large(least: float) -> list[_Keys]:
    """What has at least so many keys, of all tenants."""
    found: list[_Keys] = []
    tenant = next_tenant(0)
    while tenant is not None:
        with transaction(Asker("worker", tenant)) as connection:
            rows = connection.execute(_COUNTED, {"tenant": tenant, "least": least}).all()
        found += [_Keys(tenant, *row) for row in rows if 0 < row.dimensions <= _DIMENSIONS]
        tenant = next_tenant(tenant)
    return found
