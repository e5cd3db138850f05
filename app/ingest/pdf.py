"""PDF files -> documents, page by page."""

import logging
from collections.abc import Callable, Iterator
from typing import IO, Any

from app.errors import IngestError
from app.ingest.document import Results, failure, unparsable
from app.ingest.text import file_document, too_large


def read_pdf(path: str, max_bytes: int) -> Results:
    """The document of all pages; a page that cannot be parsed is a Failure of its own."""
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
                yield failure(path, f"page {number} cannot be parsed ({unparsable(error)})")
                continue
            # A font without a proper map of characters gives these; they are no text.
            text = text.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
            size += len(text.encode("utf-8"))
            if size > max_bytes:
                too_large(size, max_bytes)
            texts.append(text)
    if any(text.strip() for text in texts):
        yield file_document(path, "", "\n\n".join(texts), max_bytes)
    elif not failed:
        raise IngestError("is empty; a scanned PDF needs text recognition (OCR) first")


def _pdf_pages(open_pdf: Callable[[IO[bytes]], Any], file: IO[bytes]) -> Iterator[Any]:
    try:
        pdf = open_pdf(file)
        locked = pdf.is_encrypted and not pdf.decrypt("")
        count = 0 if locked else len(pdf.pages)
    except Exception as error:  # a parser's own errors are of any kind
        raise IngestError(
            f"cannot be parsed as PDF ({unparsable(error)}); open and save it again"
        ) from None
    if locked:
        raise IngestError("has a password; save it without one")
    return (pdf.pages[number] for number in range(count))
