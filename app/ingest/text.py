"""Reads text and Markdown files as documents, and normalises text for storage."""

import codecs
import hashlib
import re
import unicodedata
from typing import NoReturn

from app.errors import IngestError
from app.ingest.blocks import first_heading
from app.ingest.document import Document, Results
from app.ingest.source import Source

_YAML_KEY = re.compile(r"[\w.-]+[ \t]*:(?:\s|$)")
_YAML_TITLE = re.compile(r"title[ \t]*:[ \t]+(?![>|&*!{\[])(\S.*)")


def read_plain(source: Source, max_bytes: int) -> Results:
    """Yield a text file as one document, whose title is the name of the file."""
    yield file_document(source, "", load(source, max_bytes), max_bytes)


def read_markdown(source: Source, max_bytes: int) -> Results:
    """Yield a Markdown file as one document, titled by its front matter or first heading."""
    title, text = _front_matter(normal(load(source, max_bytes), max_bytes))
    yield file_document(source, title or first_heading(text) or "", text, max_bytes)


def _front_matter(text: str) -> tuple[str, str]:
    """Return the title in a YAML block at the top ("" if none), and the text after the block.

    A `---` that opens anything but YAML is a horizontal rule, and what follows it is text.
    """
    lines = text.split("\n", 1)
    if lines[0] != "---" or len(lines) == 1:
        return "", text
    end = re.search(r"^(?:---|\.\.\.)$", lines[1], re.MULTILINE)
    if end is None:
        return "", text
    block = lines[1][: end.start()].split("\n")
    if not any(_YAML_KEY.match(line) for line in block):
        return "", text
    if any(line and line[0] not in " \t#-" and not _YAML_KEY.match(line) for line in block):
        return "", text
    titles = (_yaml_scalar(match[1]) for match in map(_YAML_TITLE.match, block) if match)
    return next(titles, ""), lines[1][end.end() :]


def _yaml_scalar(value: str) -> str:
    quoted = re.match(r"""(["'])(.*)\1\s*(?:#.*)?$""", value)
    if quoted:
        return quoted[2].replace(quoted[1] * 2 if quoted[1] == "'" else '\\"', quoted[1])
    return re.sub(r"(?:^|\s)#.*", "", value)


def load(source: Source, max_bytes: int) -> str:
    """Read a source's UTF-8 text. Raises IngestError, before decoding if it is too large."""
    most = max_bytes + len(codecs.BOM_UTF8)
    if source.size is not None and source.size > most:
        too_large(source.size, max_bytes)
    with source.open() as file:
        data = file.read(most + 1)
    if len(data) > most:
        too_large(len(data), max_bytes)
    return decode(data)


def decode(data: bytes) -> str:
    """Decode UTF-8 bytes, dropping a byte order mark. Raises IngestError."""
    refuse_utf16(data)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise IngestError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save it as UTF-8"
        ) from None


def refuse_utf16(data: bytes) -> None:
    """Raises IngestError for bytes that begin like UTF-16 or UTF-32."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise IngestError("is UTF-16 or UTF-32 text; save it as UTF-8")


def normal(text: str, max_bytes: int) -> str:
    """Normalise text for storage: NFC, `\\n` line ends, no trailing white space.

    Raises IngestError when it is empty, has more than `max_bytes`, or cannot be stored.
    """
    check_characters(text, "the text")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    if not text or text.isspace():
        raise IngestError("is empty; it has no text")
    size = len(text.encode("utf-8"))
    if size > max_bytes:
        too_large(size, max_bytes)
    return text


def check_characters(text: str, what: str) -> None:
    """Raises IngestError for characters that Postgres cannot store."""
    at = text.find("\0")
    if at >= 0:
        line = text.count("\n", 0, at) + 1
        raise IngestError(
            f"{what} has a NUL at character {at} (line {line}); remove it (is it a text file?)"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise IngestError(
            f"{what} has a lone surrogate at character {error.start}; remove it"
        ) from None


def file_document(source: Source, title: str, text: str, max_bytes: int) -> Document:
    """Make a document of a whole file, with an id derived from the source's key.

    With an empty title, the file's name is the title.
    """
    digest = hashlib.sha1(source.key.encode("utf-8"), usedforsecurity=False).hexdigest()
    title = one_line(title) or one_line(source.stem)
    return Document(f"f_{digest[:20]}", source.name, title, normal(text, max_bytes))


def one_line(text: str) -> str:
    """Normalise a title for storage: NFC, on one line."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def too_large(size: int, max_bytes: int) -> NoReturn:
    """Raises the IngestError for a text of `size` bytes, which exceeds the limit."""
    raise IngestError(
        f"{size:,} bytes of text are more than the limit of {max_bytes:,};"
        " split it, or raise MEMBANK_MAX_DOCUMENT_BYTES"
    )
