"""The object store: memories' stored bytes outside Postgres.

An object is named TENANT/PROFILE/SHA256: a number and two hashes, never a user's words. Equal
bytes are one object, so an object is removed only when no row names it. Whoever writes an object
keeps its name from before that until the row that names it is committed; whoever removes one
(app/store/unneeded.py) keeps the name alone.
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

from app.errors import BlobError, UnavailableError, UsageError
from app.process.private_files import private_folder
from app.settings import settings

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_AT_ONCE = 8
"""Concurrent requests to the store; over a network, each takes about 20 ms."""
_PATIENCE: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
"""How long to retry a remote store. A question waits meanwhile; a worker tries again later."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Objects:
    """An object store, named by its URL in the settings."""

    url: str
    _store: ObjectStore = field(repr=False, compare=False)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write all objects. Raises UnavailableError."""
        self._each(lambda item: self._store.put(item[0], item[1]), list(objects.items()))

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the objects that exist, after checking each against the hash in its name.

        Raises BlobError for a damaged object, UnavailableError.
        """
        once = list(dict.fromkeys(names))
        found = zip(once, self._each(self._get, once), strict=True)
        return {name: data for name, data in found if data is not None}

    def one(self, name: str) -> bytes:
        """Return an object that must exist. Raises BlobError if missing or damaged."""
        found = self.get([name])
        if name not in found:
            raise BlobError(f"object {name} is missing: delete its row, and it is encoded again")
        return found[name]

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those already gone are ignored. Raises UnavailableError."""
        self._each(self._remove, list(names))

    def listed(self, prefix: str | None = None) -> Iterator[list[tuple[str, datetime]]]:
        """Yield pages of names and the times when they were written. Raises UnavailableError."""
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
                " check MEMBANK_BLOB_STORE and its credentials"
            ) from None


def writing() -> Objects | None:
    """The store for new memories, or None if they go to Postgres. Raises UsageError."""
    return _named(settings().blob_store) if settings().blob_store else None


def reading() -> Objects:
    """The store that existing objects are read from: the current one, or the old one.

    Raises UsageError when neither is set.
    """
    url = settings().blob_store or settings().old_blob_store
    if not url:
        raise UsageError(
            "memories are in an object store, but none is set: set MEMBANK_BLOB_STORE, or"
            " MEMBANK_OLD_BLOB_STORE while they are being moved"
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
    """Where a row's bytes are: in `payload`, or in the object at `location` of `size` bytes."""

    sha256: str
    payload: bytes | None
    location: str | None
    size: int | None


def planned(
    tenant: int, blobs: Sequence[tuple[str, bytes]], objects: Objects | None
) -> list[Stored]:
    """What rows will say of these bytes, each with its profile, once they are written."""
    found = []
    for profile, payload in blobs:
        digest = hashlib.sha256(payload).hexdigest()
        if objects is None:
            found.append(Stored(digest, payload, None, None))
        else:
            found.append(Stored(digest, None, _name(tenant, profile, digest), len(payload)))
    return found


def write(stored: Sequence[Stored], blobs: Sequence[tuple[str, bytes]], objects: Objects) -> None:
    """Write what was planned to be objects. Raises UnavailableError."""
    objects.put(
        {
            one.location: payload
            for one, (_, payload) in zip(stored, blobs, strict=True)
            if one.location is not None
        }
    )


def _name(tenant: int, profile: str, digest: str) -> str:
    return f"{tenant}/{hashlib.sha256(profile.encode()).hexdigest()[:16]}/{digest}"
