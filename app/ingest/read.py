"""Reads documents from Markdown, text, HTML, PDF, DOCX and JSONL, also gzipped or in archives.

Whatever is wrong with a file, member, page or line becomes a Failure that names it, and reading
goes on with the rest.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from app.errors import IngestError
from app.ingest import archive
from app.ingest.document import Failure, Results, failure, unparsable
from app.ingest.docx import read_docx
from app.ingest.html import read_html
from app.ingest.pdf import read_pdf
from app.ingest.rows import read_rows
from app.ingest.source import Source, unreadable, without_gzip
from app.ingest.text import read_markdown, read_plain

_READERS: dict[str, Callable[[Source, int], Results]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_plain,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".jsonl": read_rows,
}
_ENDINGS = (
    f"{' '.join(_READERS)}, archives ({' '.join(archive.ENDINGS)}),"
    " and any but archives followed by .gz, such as .jsonl.gz"
)


def read(paths: Iterable[Path], max_bytes: int) -> Results:
    """Stream the documents of files, folders and archives, reading each file only once.

    A text of more than `max_bytes` in UTF-8 is a Failure. Never raises for bad input.
    """
    seen: set[str] = set()
    for path in paths:
        for found in _files(os.path.abspath(path)):
            if isinstance(found, Failure):
                yield found
            elif (real := os.path.realpath(found)) not in seen:
                seen.add(real)
                yield from _read_file(found, max_bytes)


def read_upload(path: Path, name: str, key: str, max_bytes: int) -> Results:
    """Stream the documents of a file that is called `name`, whatever its path is.

    The ids of its documents derive from `key`. The ending of `name` says how the file is read; if
    that is .gz, the path must end the same way. Never raises for bad input.
    """
    base = re.split(r"[/\\]", name)[-1]
    if not is_read(base):
        yield failure(name, f"files with this ending are not read; those that are: {_ENDINGS}")
        return
    source = Source.file(str(path))
    yield from _read_whole(replace(source, name=name, key=key, base=base), max_bytes)


def _files(path: str) -> Iterator[str | Failure]:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        yield failure(path, "no such file or folder; check the spelling")
    except (OSError, ValueError) as error:
        yield failure(path, unreadable(error))
    else:
        if stat.S_ISDIR(mode):
            yield from _walk(path)
        elif not is_read(path):
            yield failure(path, f"files with this ending are not read; those that are: {_ENDINGS}")
        else:
            yield path


def _walk(root: str) -> Iterator[str | Failure]:
    """Yield a folder's files with known endings, except hidden ones and links out of the folder."""
    real_root = Path(os.path.realpath(root))
    problems: list[OSError] = []
    count = 0
    for folder, folders, names in os.walk(root, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.startswith(".") or not is_read(name) or _leaves(path, real_root):
                continue
            count += 1
            yield path
    for problem in problems:
        yield failure(str(problem.filename or root), unreadable(problem))
    if not count and not problems:
        yield failure(root, f"no file in this folder has an ending that can be read: {_ENDINGS}")


def _leaves(path: str, real_root: Path) -> bool:
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(real_root)


def is_read(name: str) -> bool:
    """Whether the file name has an ending that can be read."""
    return _ending(name) is not None or archive.is_archive(os.path.basename(name))


def _ending(name: str) -> str | None:
    """The ending that says how a file is read, or None."""
    lower = without_gzip(os.path.basename(name)).lower()
    return next((ending for ending in _READERS if lower[1:].endswith(ending)), None)


def _read_file(path: str, max_bytes: int) -> Results:
    try:
        source = Source.file(path)
    except IngestError as error:
        yield failure(path, str(error))
    else:
        yield from _read_whole(source, max_bytes)


def _read_whole(source: Source, max_bytes: int) -> Results:
    try:
        if archive.is_archive(source.base):
            yield from _read_archive(source, max_bytes)
        else:
            yield from _read_source(source, max_bytes)
    except IngestError as error:
        yield failure(source.name, str(error))


def _read_archive(source: Source, max_bytes: int) -> Results:
    """Raises IngestError when the archive cannot be read any further."""
    _check_name(source)
    found = False
    for member in archive.members(source, lambda name: _ending(name) is not None):
        found = True
        if isinstance(member, Failure):
            yield member
        else:
            yield from _read_source(member, max_bytes)
    if not found:
        raise IngestError(f"no member of this archive has an ending that can be read: {_ENDINGS}")


def _read_source(source: Source, max_bytes: int) -> Results:
    ending = _ending(source.base)
    assert ending is not None, source  # noqa: S101 - callers have checked the name
    try:
        _check_name(source)
        yield from _READERS[ending](source, max_bytes)
    except IngestError as error:
        yield failure(source.name, str(error))
    except Exception as error:  # a parser's own errors are of any kind
        kind = ending[1:].upper()
        problem = f"cannot be parsed as {kind} ({unparsable(error)}); open and save it again"
        yield failure(source.name, problem)


def _check_name(source: Source) -> None:
    try:
        source.name.encode("utf-8")
    except UnicodeEncodeError:
        raise IngestError("the name is not UTF-8 text; rename the file") from None
    if "\0" in source.name:
        raise IngestError("the name has a NUL; rename the file")
