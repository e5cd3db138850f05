"""An uploaded file -> documents in a bank."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.bank.find import Bank
from app.errors import MembankError, UnavailableError
from app.ingest.document import Document, Failure
from app.ingest.read import is_read, read_upload
from app.ingest.storing import CountTokens, stored, together
from app.queue.uploads import Upload

_LONGEST = 1000
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")


@dataclass(frozen=True)
class Splitting:
    """How documents are split: `require` raises ProfileError for a bank that has it otherwise."""

    count: CountTokens
    max_bytes: int
    require: Callable[[Bank], None]


@dataclass(frozen=True)
class Fault:
    """Why a file, or a part of it, is not in the bank; code: as vector stores have it."""

    code: str
    error: str


def store_upload(
    bank: Bank, file: str, upload: Upload, content: bytes, how: Splitting
) -> Fault | None:
    """Store the documents of a file in the name of who put it there; what of it failed.

    The rest of it is stored. Raises UnavailableError when the database goes away.
    """
    if upload.principal is None:  # nobody else's rights are to be used
        return Fault("server_error", "who put the file here was deleted: attach it again")
    allow = None if upload.access is None else tuple(upload.access)
    failed: list[str] = []
    found, code = 0, "server_error"
    try:
        how.require(bank)
        with _on_disk(upload.filename, content) as path:
            for some in together(read_upload(path, upload.filename, file, how.max_bytes)):
                given = [_with(each, upload.attributes) for each in some]
                become = stored(given, lambda _: bank, allow, how.count, upload.principal, file)
                for each, done in zip(given, become, strict=True):
                    found += 1
                    if isinstance(done, Failure):
                        if not failed and isinstance(each, Failure):
                            code = _code(upload.filename)
                        failed.append(done.error)
    except UnavailableError:
        raise
    except MembankError as error:
        failed.append(str(error))
    return Fault(code, _told(failed, found)) if failed else None


def _with(found: Document | Failure, attributes: Mapping[str, Any]) -> Document | Failure:
    if isinstance(found, Failure):
        return found
    return replace(found, metadata={**found.metadata, **attributes})


def _code(filename: str) -> str:
    base = re.split(r"[/\\]", filename)[-1]
    return "invalid_file" if is_read(base) else "unsupported_file"


def _told(failed: list[str], found: int) -> str:
    others = f" ({len(failed)} of {found} failed; the others are stored)" if found > 1 else ""
    return failed[0][: _LONGEST - len(others)] + others


@contextlib.contextmanager
def _on_disk(filename: str, content: bytes) -> Iterator[Path]:
    """A temporary file with the content, whose path has nothing of the name but its suffix."""
    suffix = _SUFFIX.search(filename)
    with tempfile.NamedTemporaryFile(prefix="upload-", suffix=suffix[0] if suffix else "") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)
