"""Anything that is read as one file: a plain file, a gzipped one, or a member of an archive."""

import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from app.errors import IngestError
from app.ingest.document import unparsable

_BROKEN = (
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
# Text compresses 3 to 20 times, a log or a table of numbers up to 100 times.
_MOST_RATIO = 200
_HARMLESS_BYTES = 100_000_000
_MOST_BYTES = 10_000_000_000
_KEPT_IN_MEMORY = 8_000_000


class Damage(IngestError):
    """Packed data that cannot be unpacked completely."""

    def __init__(self, data: str, reason: str, after: str = "") -> None:
        place = f" after {after}" if after else ""
        super().__init__(
            f"the {data} data is damaged or cut off{place} ({reason}); compress it again"
        )
        self._data, self._reason = data, reason

    def after(self, place: str) -> "Damage":
        """Return this error with `place` added: the last thing that could still be read."""
        return Damage(self._data, self._reason, place)


class Budget:
    """The number of bytes that packed data may still unpack to, a defence against zip bombs."""

    def __init__(self, packed: int) -> None:
        """`packed` is the size of the packed data in bytes."""
        self._most = min(_MOST_BYTES, max(_HARMLESS_BYTES, _MOST_RATIO * packed))
        self._left = self._most

    @property
    def is_spent(self) -> bool:
        return self._left < 0

    def spend(self, size: int) -> None:
        """Deduct `size` bytes. Raises IngestError when more has been unpacked than is allowed."""
        self._left -= size
        if self.is_spent:
            raise IngestError(
                f"unpacks to more than {self._most:,} bytes, the limit for its size; the rest was"
                " not read; if you trust it, unpack it and ingest the folder"
            )


@dataclass(frozen=True)
class Source:
    """Something named that can be read as bytes.

    `name` is what documents and failures call it, `key` is what its document's id derives from, and
    `base` is its file name without folders; if that ends with .gz, the bytes are unpacked. `opener`
    opens the bytes, to be read once from the beginning; reading them raises only IngestErrors.
    `size` is in bytes, or None if only reading can tell.
    """

    name: str
    key: str
    base: str
    opener: Callable[[], IO[bytes]]
    size: int | None
    budget: Budget
    rewinds: bool = False

    @classmethod
    def file(cls, path: str) -> Self:
        """The file at a path. Raises IngestError if it does not exist or is not a regular file."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise IngestError(unreadable(error)) from None
        if not stat.S_ISREG(status.st_mode):
            raise IngestError("is not a regular file; save its content as one")
        base = os.path.basename(path)
        return cls(
            name=path,
            key=Path(os.path.realpath(path)).as_posix(),
            base=base,
            opener=lambda: open(path, "rb"),
            size=None if is_gzipped(base) else status.st_size,
            budget=Budget(status.st_size),
            rewinds=not is_gzipped(base),
        )

    @property
    def stem(self) -> str:
        """The file name without its ending, and without .gz."""
        return Path(without_gzip(self.base)).stem

    def open(self) -> IO[bytes]:
        """Open the unpacked bytes. The caller closes the stream."""
        file = self.open_packed()
        if not is_gzipped(self.base):
            return file
        return unpacked(lambda: gzip.GzipFile(fileobj=file), "gzip", self.budget, file)

    def open_packed(self) -> IO[bytes]:
        """Open the bytes as they are stored. The caller closes the stream."""
        try:
            return self.opener()
        except OSError as error:
            raise IngestError(unreadable(error)) from None

    def open_rewindable(self, max_bytes: int) -> IO[bytes]:
        """Open the unpacked bytes as a seekable stream. The caller closes it.

        Unpacked data is held in memory, or in an unnamed temporary file.
        Raises IngestError when there is more than `max_bytes` of it.
        """
        if self.rewinds:
            return self.open()
        kept = _Kept(_KEPT_IN_MEMORY)
        with self.open() as file:
            while piece := file.read(1 << 20):
                kept.write(piece)
                if kept.tell() > max_bytes:
                    kept.close()
                    raise IngestError(
                        f"unpacks to more than {max_bytes:,} bytes, too many for a packed file of"
                        " this kind; unpack it and ingest the file"
                    )
        kept.seek(0)
        return kept


class _Kept(tempfile.SpooledTemporaryFile[bytes]):
    name = None  # the original is a number, which mammoth would take for a path


def is_gzipped(name: str) -> bool:
    """Whether a file name has the ending of a gzipped file."""
    return name.lower().endswith(".gz")


def without_gzip(name: str) -> str:
    """The file name without .gz at its end, if it has that."""
    return name[: -len(".gz")] if is_gzipped(name) else name


def unpacked(
    opener: Callable[[], Any],
    data: str,
    budget: Budget | None = None,
    below: IO[bytes] | None = None,
) -> IO[bytes]:
    """Wrap a library's unpacked stream so that it raises only IngestErrors.

    `data` names the kind of data in errors, `budget` is charged for what is read, and `below` is
    closed together with the stream.
    """
    return io.BufferedReader(_Unpacked(opener, data, budget, below), 1 << 16)


class _Unpacked(io.RawIOBase):
    def __init__(
        self,
        opener: Callable[[], Any],
        data: str,
        budget: Budget | None,
        below: IO[bytes] | None,
    ) -> None:
        self._opener, self._data, self._budget = opener, data, budget
        self._file: Any = None
        self._below = below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            if self._file is None:
                self._file = self._opener()
            found = self._file.read(len(buffer))
        except _BROKEN as error:
            raise Damage(self._data, " ".join(str(error).split()) or unparsable(error)) from None
        if self._budget is not None:
            self._budget.spend(len(found))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        for file in (self._file, self._below):
            if file is not None:
                file.close()
        super().close()


def unreadable(error: OSError | ValueError) -> str:
    """Why the system cannot read a file."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read ({reason or error}); check that it exists and that you may read it"
