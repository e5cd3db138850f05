"""Memories' bytes written again: to another place, or sealed with another key."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import BigInteger, Connection, LargeBinary, Text, bindparam, text

from app.db.session import Asker, keeping
from app.db.sql import statements
from app.store import unneeded
from app.store.objects import Objects, planned, write

_SQL = statements(__file__)
_REPLACE = text(_SQL["replace"]).bindparams(
    bindparam("payload", type_=LargeBinary),
    bindparam("location", type_=Text),
    bindparam("old_location", type_=Text),
    bindparam("size", type_=BigInteger),
    bindparam("key_version", type_=BigInteger),
)


@dataclass(frozen=True)
class Rewritten:
    """New bytes of a row, and the hash and place of the bytes that they replace."""

    chunk: int
    profile: str
    payload: bytes
    old_sha256: str
    old_location: str | None


def rewrite(
    tenant: int,
    rows: Sequence[Rewritten],
    store: Objects | None,
    key_version: int | None = None,
    may: Callable[[Connection], bool] = lambda _: True,
) -> int:
    """Replace the bytes of the rows that still hold the old ones; return how many did.

    Objects are written before the transaction that names them, in which `may` is asked first.
    key_version: what the new bytes are sealed with, None for what sealed the old ones. Raises
    UnavailableError.
    """
    asker, blobs = Asker("worker", tenant), [(row.profile, row.payload) for row in rows]
    stored = planned(tenant, blobs, store)
    names = {one.location for one in stored if one.location is not None}
    done, named = 0, set()
    with keeping(asker, names) as (_, begin):
        if store is not None:
            write(stored, blobs, store)
        with begin() as connection:
            for row, new in zip(rows, stored, strict=True) if may(connection) else ():
                values = {
                    "tenant": tenant,
                    "key_version": key_version,
                    **asdict(row),
                    **asdict(new),
                }
                if connection.execute(_REPLACE, values).rowcount:
                    done += 1
                    named.add(new.location)
    if lost := names - named:
        unneeded.remove(tenant, lost)
    return done
