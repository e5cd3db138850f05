"""Files -> documents: Markdown, text, HTML, PDF, DOCX and JSONL, one at a time.

Whatever is wrong with one file, page or line becomes a Failure that names it; the rest goes on.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from app.errors import IngestError
from app.ingest.document import Failure, Results, failure
from app.ingest.docx import read_docx
from app.ingest.html import read_html
from app.ingest.pdf import read_pdf
from app.ingest.rows import read_rows
from app.ingest.text import read_markdown, read_plain

_READERS: dict[str, Callable[[str, int], Results]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_plain,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".jsonl": read_rows,
    ".jsonl.gz": read_rows,
}
_ENDINGS = " ".join(_READERS)


def read(paths: Iterable[Path], max_bytes: int) -> Results:
    """Stream the documents of files and folders; each file once, however often it is named.

    A text of more than `max_bytes` in UTF-8 is a Failure. Nothing is raised for bad input.
    """
    seen: set[str] = set()
    for path in paths:
        for found in _files(os.path.abspath(path)):
            if isinstance(found, Failure):
                yield found
            elif (real := os.path.realpath(found)) not in seen:
                seen.add(real)
                yield from _read_file(found, max_bytes)


def _files(path: str) -> Iterator[str | Failure]:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        yield failure(path, "no such file or folder; check the spelling")
    except (OSError, ValueError) as error:
        yield failure(path, _unreadable(error))
    else:
        if stat.S_ISDIR(mode):
            yield from _walk(path)
        elif _reader(path) is None:
            yield failure(path, f"this ending is not read; the endings that are: {_ENDINGS}")
        else:
            yield path


def _walk(root: str) -> Iterator[str | Failure]:
    """Files of known endings below a folder, without hidden ones and ways out of the folder."""
    real_root = Path(os.path.realpath(root))
    problems: list[OSError] = []
    count = 0
    for folder, folders, names in os.walk(root, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.startswith(".") or _reader(name) is None or _leaves(path, real_root):
                continue
            count += 1
            yield path
    for problem in problems:
        yield failure(str(problem.filename or root), _unreadable(problem))
    if not count and not problems:
        yield failure(root, f"no file in this folder has an ending that is read: {_ENDINGS}")


def _leaves(path: str, real_root: Path) -> bool:
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(real_root)


def _reader(name: str) -> Callable[[str, int], Results] | None:
    lower = os.path.basename(name).lower()
    return next((reader for end, reader in _READERS.items() if lower[1:].endswith(end)), None)


def _read_file(path: str, max_bytes: int) -> Results:
    reader = _reader(path)
    assert reader is not None, path  # noqa: S101 - _files yields no other
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IngestError("is not a regular file; save its content as one")
        _check_name(path)
        yield from reader(path, max_bytes)
    except IngestError as error:
        yield failure(path, str(error))
    except OSError as error:
        yield failure(path, _unreadable(error))


def _check_name(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise IngestError("the name is not UTF-8 text; rename the file") from None


def _unreadable(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read ({reason or error}); check that it is there and that you may read it"
