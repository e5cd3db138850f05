"""DOCX files -> documents, by way of HTML."""

import zipfile
from typing import IO

from app.errors import IngestError
from app.ingest.document import Results, unparsable
from app.ingest.html import html_text
from app.ingest.split import first_heading
from app.ingest.text import file_document, too_large


def read_docx(path: str, max_bytes: int) -> Results:
    """The document of a DOCX file, as Markdown."""
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
                f"cannot be parsed as DOCX ({unparsable(error)}); open and save it again"
            ) from None
    title, text = html_text(html)
    yield file_document(path, first_heading(text) or title, text, max_bytes)


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
        too_large(size, max_bytes)
    file.seek(0)
