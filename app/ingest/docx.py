"""Reads DOCX files as documents, by way of HTML."""

import zipfile
from collections import Counter
from typing import IO
from xml.parsers import expat

from app.errors import IngestError
from app.ingest.blocks import first_heading
from app.ingest.document import Results, unparsable
from app.ingest.html import html_text
from app.ingest.source import Source
from app.ingest.text import file_document, too_large

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
_BODY = "word/document.xml"
_MOST_ELEMENTS = 1_000_000


def read_docx(source: Source, max_bytes: int) -> Results:
    """Yield a DOCX file as one document in Markdown."""
    import mammoth  # type: ignore[import-untyped]

    with source.open_rewindable(10 * max_bytes) as file:
        _check_docx(file, max_bytes)
        file.seek(0)
        html = mammoth.convert_to_html(
            file,
            style_map="p[style-name='Title'] => h1:fresh",
            convert_image=mammoth.images.img_element(lambda _: {}),
        ).value
    title, text = html_text(html)
    yield file_document(source, first_heading(text) or title, text, max_bytes)


def _check_docx(file: IO[bytes], max_bytes: int) -> None:
    """Refuse a file that would fill the memory, and say where one cannot be parsed."""
    packed_size = file.seek(0, 2)
    try:
        packed = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise IngestError(
            "is not a DOCX file, or has a password; save it as DOCX without one"
        ) from None
    parts = packed.infolist()
    xml = [p for p in parts if p.filename.lower().endswith((".xml", ".rels"))]
    # Images do not grow when unpacked; what grows is text, whatever its name is.
    size = max(
        sum(part.file_size for part in xml), sum(part.file_size for part in parts) - packed_size
    )
    if size > 4 * max_bytes + 1_000_000:
        too_large(size, max_bytes)
    elements = sum(_elements(packed, part) for part in parts)
    if elements > _MOST_ELEMENTS:
        raise IngestError(
            f"has {elements:,} XML elements, more than the limit of {_MOST_ELEMENTS:,}; split it"
        )


def _elements(packed: zipfile.ZipFile, part: zipfile.ZipInfo) -> int:
    """Count the XML elements of a part, whatever its name, because the parser follows references.

    Raises IngestError where the body cannot be parsed. Other parts may not be needed.
    """
    seen: Counter[str] = Counter()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = lambda name, _: seen.update((name,))
    try:
        with packed.open(part) as file:
            parser.ParseFile(file)
    except Exception as error:  # of the zip archive, or of the XML
        if part.filename == _BODY:
            raise IngestError(
                f"cannot be parsed as DOCX (paragraph {seen[_WORD + 'p']}, table"
                f" {seen[_WORD + 'tbl']}: {unparsable(error)}); open and save it again"
            ) from None
    return seen.total()
