"""An uploaded file -> documents in a bank; what became of it is noted beside the file."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.access.tenants import Bank
from app.bank import attachments
from app.bank.files import File
from app.bank.session import Asker
from app.errors import MembankError, UnavailableError
from app.ingest.document import Document, Failure
from app.ingest.read import is_read, read_upload
from app.ingest.service import CountTokens, stored

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")
_LONGEST_ERROR = 1000


@dataclass(frozen=True)
class Splitting:
    """How documents are split: `require` raises ProfileError for a bank that has it otherwise."""

    count: CountTokens
    context: int
    max_bytes: int
    require: Callable[[Bank], None]


def store_upload(
    asker: Asker,
    bank: Bank,
    file: File,
    content: bytes,
    attributes: Mapping[str, Any],
    allow: tuple[str, ...] | None,
    how: Splitting,
) -> None:
    """Store the documents of a file that was attached to a bank, in the asker's name.

    Whatever fails is noted as the file's error; the rest of it is stored. `attributes` are added
    to the metadata of each document, `allow` is the list of those that bring none. Raises
    UnavailableError when the database goes away.
    """
    base = re.split(r"[/\\]", file.filename)[-1]
    if not attachments.is_wanted(asker, bank.id, file.id):
        return
    failed: list[str] = []
    found, code = 0, "server_error"
    try:
        how.require(bank)
        with _on_disk(file.filename, content) as path:
            for each in read_upload(path, file.filename, file.id, how.max_bytes):
                if isinstance(each, Document):
                    each = replace(each, metadata={**each.metadata, **attributes})
                done = stored(
                    each, lambda _: bank, allow, how.count, how.context, asker.principal, file.id
                )
                found += 1
                if isinstance(done, Failure):
                    if not failed and isinstance(each, Failure):
                        code = "invalid_file" if is_read(base) else "unsupported_file"
                    failed.append(done.error)
    except UnavailableError:
        raise
    except MembankError as error:
        failed.append(str(error))
    attachments.finish(asker, bank.id, file.id, _error(failed, found), code if failed else None)


def _error(failed: list[str], found: int) -> str | None:
    if not failed:
        return None
    others = f" ({len(failed)} of {found} failed; the others are stored)" if found > 1 else ""
    return failed[0][:_LONGEST_ERROR] + others


@contextlib.contextmanager
def _on_disk(filename: str, content: bytes) -> Iterator[Path]:
    """A temporary file with the content, whose path has nothing of the name but its suffix."""
    suffix = _SUFFIX.search(filename)
    with tempfile.NamedTemporaryFile(prefix="upload-", suffix=suffix[0] if suffix else "") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)
