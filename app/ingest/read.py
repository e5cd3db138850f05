"""Files -> documents: Markdown, text, HTML, PDF, DOCX and JSONL, one at a time.

Whatever is wrong with one file, page or line becomes a Failure that names it; the rest goes on.
"""

import codecs
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from app.errors import IngestError
from app.ingest.split import first_heading


@dataclass(frozen=True)
class Document:
    """A text to remember. `allow` and `tenant` are None where the source does not state them."""

    id: str
    source: str
    title: str
    text: str
    allow: tuple[str, ...] | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    tenant: str | None = None


@dataclass(frozen=True)
class Failure:
    """A file, page or line that gave no document; `error` is one line that names it."""

    source: str
    error: str


_Results = Iterator[Document | Failure]


def read(paths: Iterable[Path], max_bytes: int) -> _Results:
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


# --- finding files


def _files(path: str) -> Iterator[str | Failure]:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        yield _failure(path, "no such file or folder; check the spelling")
    except (OSError, ValueError) as error:
        yield _failure(path, _unreadable(error))
    else:
        if stat.S_ISDIR(mode):
            yield from _walk(path)
        elif _reader(path) is None:
            yield _failure(path, f"this ending is not read; the endings that are: {_ENDINGS}")
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
        yield _failure(str(problem.filename or root), _unreadable(problem))
    if not count and not problems:
        yield _failure(root, f"no file in this folder has an ending that is read: {_ENDINGS}")


def _leaves(path: str, real_root: Path) -> bool:
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(real_root)


def _reader(name: str) -> "Callable[[str, int], _Results] | None":
    lower = os.path.basename(name).lower()
    return next((reader for end, reader in _READERS.items() if lower[1:].endswith(end)), None)


def _read_file(path: str, max_bytes: int) -> _Results:
    reader = _reader(path)
    assert reader is not None, path  # noqa: S101 - _files yields no other
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IngestError("is not a regular file; save its content as one")
        _check_name(path)
        yield from reader(path, max_bytes)
    except IngestError as error:
        yield _failure(path, str(error))
    except OSError as error:
        yield _failure(path, _unreadable(error))


def _check_name(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise IngestError("the name is not UTF-8 text; rename the file") from None


# --- errors


def _failure(place: str, problem: str) -> Failure:
    name = _printable(place)
    return Failure(name, f"{name}: {_printable(problem)}")


def _printable(text: str) -> str:
    """The text on one line that any terminal, and UTF-8, can take."""
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else ascii(c)[1:-1] for c in text)


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _unreadable(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read ({reason or error}); check that it is there and that you may read it"


def _unparsable(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _too_large(size: int, max_bytes: int) -> NoReturn:
    raise IngestError(
        f"{size:,} bytes of text are more than the limit of {max_bytes:,};"
        " split it, or raise MEMBANK_MAX_DOCUMENT_BYTES"
    )


# --- text


def _load(path: str, max_bytes: int) -> str:
    """The text of a UTF-8 file, refused by its size before it is read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes + len(codecs.BOM_UTF8):
            _too_large(size, max_bytes)
        data = file.read(max_bytes + len(codecs.BOM_UTF8) + 1)
    return _decode(data)


def _decode(data: bytes) -> str:
    _refuse_utf16(data)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise IngestError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save it as UTF-8"
        ) from None


def _refuse_utf16(data: bytes) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise IngestError("is UTF-16 or UTF-32 text; save it as UTF-8")


def _normal(text: str, max_bytes: int) -> str:
    """The text as it is stored: NFC, `\\n` line ends, no white space at a line's end."""
    _check_characters(text, "the text")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    if not text or text.isspace():
        raise IngestError("is empty; there is no text in it")
    size = len(text.encode("utf-8"))
    if size > max_bytes:
        _too_large(size, max_bytes)
    return text


def _check_characters(text: str, what: str) -> None:
    """Refuse what Postgres cannot store."""
    at = text.find("\0")
    if at >= 0:
        raise IngestError(f"{what} has a NUL at character {at}; remove it (is it a text file?)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise IngestError(
            f"{what} has half a surrogate pair at character {error.start}; remove it"
        ) from None


def _document(path: str, title: str, text: str, max_bytes: int) -> Document:
    real = Path(os.path.realpath(path)).as_posix()
    digest = hashlib.sha1(real.encode("utf-8"), usedforsecurity=False).hexdigest()
    title = _title(title) or _title(Path(path).stem)
    return Document(f"f_{digest[:20]}", path, title, _normal(text, max_bytes))


def _title(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _plain(path: str, max_bytes: int) -> _Results:
    yield _document(path, "", _load(path, max_bytes), max_bytes)


def _markdown(path: str, max_bytes: int) -> _Results:
    title, text = _front_matter(_normal(_load(path, max_bytes), max_bytes))
    yield _document(path, title or first_heading(text) or "", text, max_bytes)


_YAML_KEY = re.compile(r"[\w.-]+[ \t]*:(?:\s|$)")
_YAML_TITLE = re.compile(r"title[ \t]*:[ \t]+(?![>|&*!{\[])(\S.*)")


def _front_matter(text: str) -> tuple[str, str]:
    """The title in a YAML block at the top ("" if none), and the text after the block.

    A `---` that opens anything but YAML is a rule, and what follows it is text.
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


# --- HTML

# fmt: off
_DROPPED = frozenset((
    "script", "style", "nav", "head", "noscript", "template", "svg", "iframe", "object", "canvas",
    "select", "textarea", "button",
))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "mark", "meter", "output", "progress", "q",
    "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time",
    "tt", "u", "var", "wbr",
))
# fmt: on
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_LAYOUT = ("table", "ul", "ol", "pre", *sorted(_HEADINGS))


def _html(path: str, max_bytes: int) -> _Results:
    title, text = _html_text(_load(path, max_bytes))
    yield _document(path, first_heading(text) or title, text, max_bytes)


def _html_text(html: str) -> tuple[str, str]:
    """The `<title>` and the body as Markdown."""
    from lxml import etree  # type: ignore[import-untyped]

    _check_characters(html, "the page")
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True)
    try:
        root = etree.fromstring(html.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:
        if not html or html.isspace() or "empty" in str(error):
            return "", ""
        raise IngestError(f"cannot be parsed as HTML ({_unparsable(error)})") from None
    # Past its limit of depth the parser drops the rest and reports it here only.
    if any("depth" in entry.message for entry in parser.error_log):
        raise IngestError("the HTML is nested too deeply; simplify it or save it as text")
    if root is None:
        return "", ""
    title = root.find(".//head/title")
    return (title.text or "") if title is not None else "", _MarkdownWriter().convert(root)


class _MarkdownWriter:
    """Writes an HTML tree as Markdown: headings, lists, code, tables; without recursion."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._inline: list[str] = []
        self._prefix = ""
        self._was_tight = False
        self._lists: list[int | None] = []
        self._tables: list[bool] = []
        self._in_cell = False
        self._row: list[str] = []
        self._rows = 0

    def convert(self, root: Any) -> str:
        """The text of the tree."""
        from lxml import etree

        walk = etree.iterwalk(root, events=("start", "end", "pi"))
        for event, node in walk:
            if event == "start":
                self._add(node.text if self._enter(node) else walk.skip_subtree())
                continue
            if event == "end" and node.tag not in _DROPPED:
                self._leave(node.tag)
            self._add(node.tail if node is not root else None)
        self._flush()
        return "".join(self._out)

    def _enter(self, node: Any) -> bool:
        """Begin an element; False if nothing below it is to be walked."""
        tag = node.tag
        if tag in _DROPPED:
            return False
        if tag == "br":
            self._inline.append("\n")
        elif tag == "pre":
            self._flush()
            self._code(node)
            return False
        elif tag not in _INLINE:
            self._flush()
            self._enter_block(node, tag)
        return True

    def _enter_block(self, node: Any, tag: str) -> None:
        if tag in _HEADINGS:
            self._prefix = "#" * int(tag[1]) + " "
        elif tag in ("ul", "ol", "menu"):
            # Two lists in a row are two blocks.
            self._was_tight = self._was_tight and bool(self._lists)
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._prefix = self._marker()
        elif tag == "table":
            self._tables.append(all(inner is node for inner in node.iter(*_LAYOUT)))
            self._rows = 0
        elif tag in ("td", "th"):
            self._in_cell = self._in_data_table()

    def _leave(self, tag: str) -> None:
        if tag in _INLINE or tag in ("br", "pre"):
            return
        if tag in ("td", "th") and self._in_cell:
            self._in_cell = False
            self._row.append(" ".join("".join(self._inline).split()).replace("|", "\\|"))
            self._inline.clear()
            return
        self._flush()
        if tag in _HEADINGS or tag == "li":
            self._prefix = ""
        elif tag in ("ul", "ol", "menu") and self._lists:
            self._lists.pop()
        elif tag in ("tr", "table"):
            self._end_row()
            if tag == "table":
                self._tables.pop()

    def _in_data_table(self) -> bool:
        """A table that holds headings, lists or tables is there for the looks: cells are blocks."""
        return bool(self._tables) and self._tables[-1]

    def _marker(self) -> str:
        indent = "  " * max(0, len(self._lists) - 1)
        number = self._lists[-1] if self._lists else None
        if number is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number + 1}. "

    def _add(self, text: str | None) -> None:
        if text:
            self._inline.append(re.sub(r"\s+", " ", text))

    def _flush(self) -> None:
        """End the paragraph that is being collected."""
        if self._in_cell:
            self._inline.append(" ")
            return
        lines = [" ".join(line.split()) for line in "".join(self._inline).split("\n")]
        self._inline.clear()
        separator = " " if self._prefix.startswith("#") else "\n"
        body = separator.join(line for line in lines if line)
        if body:
            self._emit(self._prefix + body, tight=self._prefix.endswith(("- ", ". ")))
            self._prefix = ""

    def _code(self, node: Any) -> None:
        for line_break in node.iter("br"):
            line_break.tail = "\n" + (line_break.tail or "")
        code = "".join(node.itertext()).strip("\n")
        if code and not code.isspace():
            longest = max(map(len, re.findall("`+", code)), default=0)
            fence = "`" * max(3, longest + 1)
            self._emit(f"{fence}\n{code}\n{fence}", tight=False)

    def _end_row(self) -> None:
        if any(self._row):
            line = f"| {' | '.join(self._row)} |"
            if self._rows == 0:
                line += "\n|" + " --- |" * len(self._row)
            self._emit(line, tight=self._rows > 0)
            self._rows += 1
        self._row.clear()

    def _emit(self, block: str, tight: bool) -> None:
        if self._out:
            self._out.append("\n" if tight and self._was_tight else "\n\n")
        self._out.append(block)
        self._was_tight = tight or block.startswith("|")


# --- DOCX and PDF


def _docx(path: str, max_bytes: int) -> _Results:
    import mammoth  # type: ignore[import-untyped]

    with open(path, "rb") as file:
        _check_docx(file, max_bytes)
        try:
            html = mammoth.convert_to_html(
                file,
                style_map="p[style-name='Title'] => h1:fresh",
                convert_image=mammoth.images.img_element(lambda _: {}),
            ).value
        except Exception as error:  # a parser's own errors are of any kind
            raise IngestError(
                f"cannot be parsed as DOCX ({_unparsable(error)}); open and save it again"
            ) from None
    title, text = _html_text(html)
    yield _document(path, first_heading(text) or title, text, max_bytes)


def _check_docx(file: IO[bytes], max_bytes: int) -> None:
    """Refuse what would fill the memory before the text could be measured."""
    try:
        parts = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise IngestError(
            "is not a DOCX file, or has a password; save it as DOCX without one"
        ) from None
    size = sum(part.file_size for part in parts if part.filename.lower().endswith(".xml"))
    if size > 4 * max_bytes + 1_000_000:
        _too_large(size, max_bytes)
    file.seek(0)


def _pdf(path: str, max_bytes: int) -> _Results:
    from pypdf import PdfReader

    # It reports repairs that lose nothing, line by line.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    texts: list[str] = []
    size = failed = 0
    with open(path, "rb") as file:
        pages = _pdf_pages(PdfReader, file)
        for number, page in enumerate(pages, 1):
            try:
                text = page.extract_text()
            except Exception as error:  # a parser's own errors are of any kind
                failed += 1
                yield _failure(path, f"page {number} cannot be parsed ({_unparsable(error)})")
                continue
            # A font without a proper map of characters gives these; they are no text.
            text = text.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
            size += len(text.encode("utf-8"))
            if size > max_bytes:
                _too_large(size, max_bytes)
            texts.append(text)
    if any(text.strip() for text in texts):
        yield _document(path, "", "\n\n".join(texts), max_bytes)
    elif not failed:
        raise IngestError("is empty; a scanned PDF needs text recognition (OCR) first")


def _pdf_pages(open_pdf: Callable[[IO[bytes]], Any], file: IO[bytes]) -> Iterator[Any]:
    try:
        pdf = open_pdf(file)
        locked = pdf.is_encrypted and not pdf.decrypt("")
        count = 0 if locked else len(pdf.pages)
    except Exception as error:  # a parser's own errors are of any kind
        raise IngestError(
            f"cannot be parsed as PDF ({_unparsable(error)}); open and save it again"
        ) from None
    if locked:
        raise IngestError("has a password; save it without one")
    return (pdf.pages[number] for number in range(count))


# --- JSONL


def _jsonl(path: str, max_bytes: int) -> _Results:
    lines_of_ids: dict[str, int] = {}
    empty = True
    with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(_bounded_lines(file, 2 * max_bytes), 1):
            if number == 1 and line is not None:
                _refuse_utf16(line)
            if line is not None and not line.strip():
                continue
            empty = False
            try:
                document = _row(path, line, max_bytes)
                first = lines_of_ids.setdefault(document.id, number)
                if first != number:
                    raise IngestError(f"id {document.id} was already on line {first}; rename it")
                yield document
            except IngestError as error:
                yield _failure(f"{path}:{number}", str(error))
    if empty:
        raise IngestError("is empty; there is no row in it")


def _bounded_lines(file: io.BufferedIOBase, limit: int) -> Iterator[bytes | None]:
    """The lines; None for one longer than `limit` bytes, which is skipped piece by piece."""
    number = 0
    try:
        while line := file.readline(limit + 1):
            number += 1
            if len(line) <= limit or line.endswith(b"\n"):
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
            yield None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IngestError(
            f"the gzip data is damaged or cut off after line {number} ({error}); compress it again"
        ) from None


def _row(path: str, line: bytes | None, max_bytes: int) -> Document:
    if line is None:
        raise IngestError(f"the line is longer than {2 * max_bytes:,} bytes; split the text")
    row = _json_object(line)
    row_id = _row_id(row)
    text = _string(row, "text")
    if text is None:
        raise IngestError('"text" is missing; each row needs "id" and "text"')
    return Document(
        id=row_id,
        source=f"{path}#{row_id}",
        title=_title(_string(row, "title") or "") or row_id,
        text=_normal(text, max_bytes),
        allow=_allow(row.get("allow")),
        metadata=_metadata(row),
        tenant=_tenant(row),
    )


def _json_object(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(_decode(line), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise IngestError(
            f"is not JSON ({error.msg}, column {error.colno}); each line must be one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise IngestError(f"is not usable JSON ({_unparsable(error)})") from None
    if not isinstance(row, dict):
        raise IngestError(f"is {_kind_of(row)}; each line must be one JSON object")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_KINDS = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a text",
    type(None): "null",
}


def _kind_of(value: object) -> str:
    return _KINDS[type(value)]


def _string(row: Mapping[str, object], key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise IngestError(f'"{key}" is {_kind_of(value)}; it must be a text')
    _check_characters(value, f'"{key}"')
    return value


def _row_id(row: Mapping[str, object]) -> str:
    value = row.get("id")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    found = _string({"id": value}, "id")
    row_id = (found or "").strip()
    if not row_id:
        raise IngestError('"id" is missing or empty; each row needs "id" and "text"')
    if len(row_id) > 512:
        raise IngestError(f'"id" has {len(row_id)} characters; at most 512 are allowed')
    _refuse_control(row_id, "id")
    return row_id


def _refuse_control(value: str, key: str) -> None:
    bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Zl", "Zp")), None)
    if bad is not None:
        raise IngestError(f'"{key}" has the control character U+{ord(bad):04X}; remove it')


def _allow(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise IngestError(f'"allow" is {_kind_of(value)}; it must be a list of texts')
    for entry in value:
        _check_grant(entry)
    return tuple(dict.fromkeys(value))


def _check_grant(entry: object) -> None:
    if not isinstance(entry, str):
        raise IngestError(f'"allow" holds {_kind_of(entry)}; it must be a list of texts')
    _check_characters(entry, '"allow"')
    _refuse_control(entry, "allow")
    kind, _, name = entry.partition(":")
    if entry != "everyone" and (kind not in ("principal", "group") or not name.strip()):
        raise IngestError(
            f'"allow" holds {entry[:80]!r}; it must be everyone, principal:NAME or group:NAME'
        )


def _tenant(row: Mapping[str, object]) -> str | None:
    tenant = _string(row, "tenant")
    if tenant is None:
        return None
    if not tenant.strip():
        raise IngestError('"tenant" is empty; name one or leave the key out')
    _refuse_control(tenant, "tenant")
    return tenant.strip()


def _metadata(row: Mapping[str, object]) -> dict[str, object]:
    """The row's metadata, with its `path` as an entry where there is one."""
    value = row.get("metadata")
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise IngestError(f'"metadata" is {_kind_of(value)}; it must be an object')
    path = _string(row, "path")
    metadata = value if path is None else {"path": path, **value}
    left: list[object] = [metadata]
    while left:
        left.extend(_checked_parts(left.pop()))
    return metadata


def _checked_parts(value: object) -> list[object]:
    """What the value holds, one level deep; refuses what jsonb cannot store."""
    if isinstance(value, str):
        _check_characters(value, '"metadata"')
    if isinstance(value, float) and not math.isfinite(value):
        raise IngestError('"metadata" has a number that is too large; write it as a text')
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


_READERS: dict[str, Callable[[str, int], _Results]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
}
_ENDINGS = " ".join(_READERS)
