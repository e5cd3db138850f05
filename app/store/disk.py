"""A cache of memories' stored bytes in a local folder. Sealed memories stay sealed in it.

A file is named CACHE/TENANT/CHUNK-HASH, where HASH covers the row's profile, version and sha256:
numbers and hashes, never a user's words. Any number of processes may share the folder. Whatever is
read is checked against the row, so a file that was truncated, changed or planted is never used.
"""

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from app.errors import UnavailableError
from app.process.private_files import private_folder, write_private
from app.settings import settings
from app.store.blobs import Held, alive
from app.store.ledger import Ledger

log = logging.getLogger("membank.cache")
_BLOCK = 4096
"""Bytes that each file counts for at least, so that the number of files is limited too."""
_REST = 300.0
"""Seconds before a folder that failed is tried again."""
_DRAFT = 3600.0
"""Seconds after which an unfinished file is taken to be left by a process that died."""
_PAGE = 1000


def disk() -> "Disk | None":
    """The cache folder of this process, or None if the settings give it none."""
    s = settings()
    folder = (s.cache_folder or s.home / "cache").expanduser().absolute()
    return _disk(folder, s.cache_disk_bytes) if s.cache_disk_bytes else None


@lru_cache(maxsize=4)
def _disk(folder: Path, budget: int) -> "Disk":
    return Disk(folder, budget)


class _File(NamedTuple):
    tenant: int
    name: str
    size: int
    used: float


class Disk:
    """A cache of stored bytes within a budget. Thread-safe.

    A folder that cannot be used never fails a question: it is logged once and left alone for a
    while.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        """Numbers of files `evicted` to make room, and `dropped` because they were damaged."""
        self._budget, self._lock = budget, threading.Lock()
        self._ledger: Ledger[str] | None = None
        self._resting_until = 0.0

    def read(self, held: Held) -> bytes | None:
        """Return the stored bytes, or None if they are not cached or do not match the row."""
        if self._resting:
            return None
        path = self._path(held)
        try:
            stored = path.read_bytes()
            if hashlib.sha256(stored).hexdigest() != held.sha256:
                with self._lock:
                    self.counts["dropped"] += 1
                self._unlink(held.tenant, path.name)
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._rest(error)
            return None
        with self._lock:
            if self._ledger is not None and not self._ledger.use(held.tenant, path.name):
                self._admit(held.tenant, path.name, len(stored))  # another process wrote it
        return stored

    def write(self, held: Held, stored: bytes) -> None:
        """Keep the bytes of a row, and drop others if there is no room."""
        if self._resting:
            return
        path = self._path(held)
        try:
            with self._lock:
                if self._ledger is None:
                    self._index()
            private_folder(private_folder(self.folder) / str(held.tenant))
            write_private(path, stored, lasting=False)
            with self._lock:
                self._admit(held.tenant, path.name, len(stored))
        except (OSError, UnavailableError) as error:
            self._rest(error)

    def forget(self, tenant: int, chunks: Sequence[int] | None = None) -> int:
        """Remove a tenant's files, or only those of `chunks`; return how many were removed."""
        gone = {str(chunk) for chunk in chunks or ()}
        names = [
            file.name
            for file in self._files(tenant)
            if chunks is None or file.name.partition("-")[0] in gone
        ]
        for name in names:
            self._unlink(tenant, name)
        if chunks is None:
            with suppress(OSError):
                (self.folder / str(tenant)).rmdir()
        return len(names)

    def sweep(self, stop: threading.Event | None = None) -> int:
        """Remove files whose row is gone or has changed; return how many.

        Also recounts the folder, which other processes write to, and evicts what exceeds the
        budget. Raises UnavailableError.
        """
        removed = 0
        for tenant in self._tenants():
            names = sorted(file.name for file in self._files(tenant))
            for at in range(0, len(names), _PAGE):
                if stop and stop.is_set():
                    return removed
                page = names[at : at + _PAGE]
                rows = alive(tenant, [int(name.partition("-")[0]) for name in page])
                for name in set(page) - {_name(*row) for row in rows}:
                    self._unlink(tenant, name)
                    removed += 1
            if not names:
                with suppress(OSError):
                    (self.folder / str(tenant)).rmdir()
        with self._lock:
            self._index()
        return removed

    def size(self) -> tuple[int, int]:
        """Number of files and their bytes in whole blocks; (0, 0) before the first write."""
        with self._lock:
            return (0, 0) if self._ledger is None else (self._ledger.entries, self._ledger.bytes)

    @property
    def _resting(self) -> bool:
        return time.monotonic() < self._resting_until

    def _rest(self, error: Exception) -> None:
        if not self._resting:
            log.warning("the cache folder %s is left alone for a while: %s", self.folder, error)
        self._resting_until = time.monotonic() + _REST

    def _path(self, held: Held) -> Path:
        name = _name(held.chunk, held.profile, held.version, held.sha256)
        return self.folder / str(held.tenant) / name

    def _index(self) -> None:
        """Count the files in the folder, the oldest first, and evict what exceeds the budget."""
        self._ledger = Ledger(self._budget)
        every = [file for tenant in self._tenants() for file in self._files(tenant)]
        for file in sorted(every, key=lambda file: file.used):
            self._admit(file.tenant, file.name, file.size)

    def _admit(self, tenant: int, name: str, size: int) -> None:
        if self._ledger is None:
            return
        for owner, gone in self._ledger.add(tenant, name, -(-size // _BLOCK) * _BLOCK):
            self.counts["evicted"] += 1
            with suppress(OSError):
                (self.folder / str(owner) / gone).unlink(missing_ok=True)

    def _unlink(self, tenant: int, name: str) -> None:
        with self._lock:
            if self._ledger is not None:
                self._ledger.remove(tenant, name)
        with suppress(OSError):
            (self.folder / str(tenant) / name).unlink(missing_ok=True)

    def _tenants(self) -> list[int]:
        with suppress(OSError):
            return sorted(int(name) for name in os.listdir(self.folder) if name.isdecimal())
        return []

    def _files(self, tenant: int) -> Iterator[_File]:
        """Yield a tenant's files, removing old unfinished ones along the way."""
        with suppress(OSError), os.scandir(self.folder / str(tenant)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(".tmp"):
                        if found.st_mtime < time.time() - _DRAFT:
                            os.unlink(entry.path)
                    elif entry.name.partition("-")[0].isdecimal():
                        yield _File(tenant, entry.name, found.st_size, found.st_mtime)


def _name(chunk: int, profile: str, version: str, sha256: str) -> str:
    return f"{chunk}-{hashlib.sha256(f'{profile} {version} {sha256}'.encode()).hexdigest()[:32]}"
