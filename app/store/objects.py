"""The object store: stored bytes of memories outside of Postgres.

An object is named TENANT/PROFILE/SHA256: a number and two hashes, never words of a user. Equal
bytes are one object, so it goes only when no row names it. Whoever writes a row that names one, or
removes one (app/upkeep/leftovers.py), holds a lock on the name until the row is committed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from sqlalchemy import Connection, text

from app.errors import BlobError, UnavailableError, UsageError
from app.process.private_files import private_folder
from app.settings import settings

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_AT_ONCE = 8
"""Requests to the store: one takes some 20 ms where it is not this machine."""
_PATIENCE: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
"""With a store elsewhere. Whoever asks waits for it, and a worker comes again by itself."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Objects:
    """A store, as its setting names it."""

    url: str
    _store: ObjectStore = field(repr=False, compare=False)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write all of them. Raises UnavailableError."""
        self._each(lambda item: self._store.put(item[0], item[1]), list(objects.items()))

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those that there are, each as its name says.

        Raises BlobError for one that is damaged, UnavailableError.
        """
        once = list(dict.fromkeys(names))
        found = zip(once, self._each(self._get, once), strict=True)
        return {name: data for name, data in found if data is not None}

    def one(self, name: str) -> bytes:
        """The same for one that must be there. Raises BlobError where it is not."""
        found = self.get([name])
        if name not in found:
            raise BlobError(f"object {name} is missing: delete its row, and it is encoded again")
        return found[name]

    def remove(self, names: Sequence[str]) -> None:
        """Also those that are gone already. Raises UnavailableError."""
        self._each(self._remove, list(names))

    def listed(self, prefix: str | None = None) -> Iterator[list[tuple[str, datetime]]]:
        """Pages of names and the times they were written. Raises UnavailableError."""
        with self._reachable():
            for page in self._store.list(prefix, chunk_size=1000):
                yield [(meta["path"], meta["last_modified"]) for meta in page]

    def _get(self, name: str) -> bytes | None:
        try:
            data = bytes(self._store.get(name).bytes())
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != name.rpartition("/")[2]:
            raise BlobError(f"object {name} is damaged: delete its row, and it is encoded again")
        return data

    def _remove(self, name: str) -> None:
        try:
            self._store.delete(name)
        except FileNotFoundError:
            return

    def _each(self, do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        with self._reachable():
            if len(items) < 2:
                return [do(item) for item in items]
            with ThreadPoolExecutor(_AT_ONCE, "objects") as pool:
                return list(pool.map(do, items))

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise UnavailableError(
                f"the object store {self.url} does not answer: {str(error).splitlines()[0]};"
                " correct MEMBANK_BLOB_STORE or its credentials"
            ) from None


def writing() -> Objects | None:
    """Where new memories go; None: into Postgres. Raises UsageError."""
    return _named(settings().blob_store) if settings().blob_store else None


def reading() -> Objects:
    """Where objects are: the store, or the one that was it before.

    Raises UsageError where neither is set.
    """
    url = settings().blob_store or settings().old_blob_store
    if not url:
        raise UsageError(
            "memories are in an object store and none is set: MEMBANK_BLOB_STORE, or"
            " MEMBANK_OLD_BLOB_STORE while they are moved"
        )
    return _named(url)


@lru_cache(maxsize=4)
def _named(url: str) -> Objects:
    if url.startswith("s3://"):
        try:
            return Objects(url, from_url(url, retry_config=_PATIENCE))
        except (BaseError, ValueError) as error:
            raise UsageError(f"MEMBANK_BLOB_STORE={url!r} cannot be used: {error}") from None
    if "://" in url and not url.startswith("file://"):
        raise UsageError(f"MEMBANK_BLOB_STORE={url!r}: give a folder or s3://BUCKET/PREFIX")
    folder = Path(url.removeprefix("file://")).expanduser().absolute()
    return Objects(url, LocalStore(private_folder(folder)))


@dataclass(frozen=True)
class Stored:
    """What a row says of its bytes: they themselves, or name and size of an object."""

    sha256: str
    payload: bytes | None
    location: str | None
    size: int | None


def place(
    connection: Connection,
    tenant: int,
    blobs: Sequence[tuple[str, bytes]],
    objects: Objects | None,
) -> list[Stored]:
    """Where these bytes, each with its profile, go; they are there before the caller's rows are.

    All of a transaction at once: the names are locked in their order. Raises UnavailableError.
    """
    digests = [hashlib.sha256(payload).hexdigest() for _, payload in blobs]
    if objects is None:
        return [Stored(d, b, None, None) for d, (_, b) in zip(digests, blobs, strict=True)]
    names = [_name(tenant, profile, d) for d, (profile, _) in zip(digests, blobs, strict=True)]
    for name in sorted(set(names)):
        connection.execute(_LOCK, {"name": name})
    objects.put({name: payload for name, (_, payload) in zip(names, blobs, strict=True)})
    return [
        Stored(digest, None, name, len(payload))
        for digest, name, (_, payload) in zip(digests, names, blobs, strict=True)
    ]


def _name(tenant: int, profile: str, digest: str) -> str:
    return f"{tenant}/{hashlib.sha256(profile.encode()).hexdigest()[:16]}/{digest}"


_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
