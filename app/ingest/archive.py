"""Reads archives' members as sources. Nothing is unpacked to a path: names are only labels."""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from tarfile import EOFHeaderError  # type: ignore[attr-defined]
from typing import IO, Any, Self

from app.errors import IngestError
from app.ingest.document import Failure, failure, unparsable
from app.ingest.source import Budget, Damage, Source, is_gzipped, unpacked

_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".tar": lambda file: file,
    ".tar.gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".tar.bz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
}
ENDINGS = (".zip", *_OPENERS)
_MOST_MEMBERS = 100_000
_MOST_NAME = 1_000
_MOST_HEADER_BYTES = 1_000_000
# tarfile reads the content of these into memory: names and other fields of the next header.
_EXTRA_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class _Entry:
    """A member that an archive lists. `problem` says why it cannot be read as a file, if so."""

    name: str
    size: int
    opener: Callable[[], IO[bytes]]
    problem: str = ""


def is_archive(name: str) -> bool:
    """Whether a file name has the ending of an archive."""
    return name.lower()[1:].endswith(ENDINGS)


def members(archive: Source, is_read: Callable[[str], bool]) -> Iterator[Source | Failure]:
    """Yield the members for whose file name `is_read` holds, in the archive's order, except hidden.

    Read each member before asking for the next. A member that is refused is a Failure.
    Raises IngestError when the archive cannot be read, or cannot be read any further.
    """
    labels: set[str] = set()
    entries = _zip_entries if archive.base.lower().endswith(".zip") else _tar_entries
    for number, entry in enumerate(entries(archive), 1):
        if number > _MOST_MEMBERS:
            raise IngestError(
                f"has more than {_MOST_MEMBERS:,} members, and only the first of them are read;"
                " unpack it and ingest the folder"
            )
        parts = [part for part in re.split(r"[/\\]", entry.name) if part not in ("", ".")]
        if not parts or any(part[0] == "." and part != ".." for part in parts):
            continue
        label, base = "/".join(parts), parts[-1]
        if not (is_read(base) or is_archive(base) or entry.problem):
            continue
        problem = entry.problem or _problem(entry.name, parts)
        if not problem and label in labels:
            problem = "is in the archive twice, and only the first is read; rename one"
        labels.add(label)
        name = f"{archive.name}!{entry.name if problem else label}"
        if problem:
            yield failure(name[: len(archive.name) + _MOST_NAME], problem)
            continue
        yield Source(
            name=name,
            key=f"{archive.key}\0{label}",
            base=base,
            opener=entry.opener,
            size=None if is_gzipped(base) else entry.size,
            budget=archive.budget,
        )
        if archive.budget.is_spent:
            return


def _problem(name: str, parts: list[str]) -> str:
    if _ABSOLUTE.match(name) or ".." in parts:
        return "the name leads out of the archive; make the archive with relative names"
    if len(name) > _MOST_NAME:
        return f"the name has more than {_MOST_NAME:,} characters; rename it"
    if is_archive(parts[-1]):
        return "is an archive inside an archive; unpack the outer one and ingest the folder"
    return ""


def _zip_entries(archive: Source) -> Iterator[_Entry]:
    with archive.open() as file:
        try:
            packed = zipfile.ZipFile(file)
        except Exception as error:  # a library's own errors are of any kind
            raise IngestError(
                f"is not a zip archive, or is damaged or cut off ({unparsable(error)}):"
                " the list of members at its end cannot be read; make it again"
            ) from None
        with packed:
            for info in packed.infolist():
                if not info.is_dir():
                    yield _zip_entry(packed, info, archive.budget)


def _zip_entry(packed: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> _Entry:
    problem = ""
    if stat.S_ISLNK(info.external_attr >> 16):
        problem = "is a link and was skipped; put the file itself into the archive"
    if info.flag_bits & 1:
        return _Entry(info.filename, info.file_size, _locked, problem)
    opener = partial(unpacked, lambda: packed.open(info), "zip", budget)
    return _Entry(info.filename, info.file_size, opener, problem)


def _locked() -> IO[bytes]:
    raise IngestError("has a password; make the archive without one")


def _tar_entries(archive: Source) -> Iterator[_Entry]:
    ending = next(end for end in _OPENERS if archive.base.lower().endswith(end))
    last = ""
    file = archive.open_packed()
    with unpacked(lambda: _OPENERS[ending](file), ending[1:], archive.budget, file) as stream:
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", tarinfo=_TarHeader, encoding="utf-8"
            ) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
                    last = member.name
                    if not member.isdir():
                        yield _tar_entry(tar, member)
        except Damage as damage:
            raise (damage.after(f"member {last}") if last else damage) from None
        except IngestError:
            raise
        except Exception as error:  # a library's own errors are of any kind
            raise Damage("tar", unparsable(error), f"member {last}" if last else "") from None


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    problem = ""
    if not member.isreg() or member.issparse():
        kind = "link" if member.islnk() or member.issym() else "device, a pipe or a sparse file"
        problem = f"is a {kind} and was skipped; put the file itself into the archive"

    def open_member() -> IO[bytes]:
        file = tar.extractfile(member)
        assert file is not None, member.name  # noqa: S101 - it is a regular file
        return file

    return _Entry(member.name, member.size, partial(unpacked, open_member, "tar"), problem)


class _TarHeader(tarfile.TarInfo):
    """A header that raises an error when damaged, where tarfile would take it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTRA_HEADERS and header.size > _MOST_HEADER_BYTES:
            raise Damage("tar", f"a header of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise Damage("tar", str(error)) from None
