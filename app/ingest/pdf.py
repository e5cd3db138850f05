"""Reads PDF files as documents, page by page."""

import logging

from app.errors import IngestError
from app.ingest.document import Results, failure, unparsable
from app.ingest.source import Source
from app.ingest.text import file_document, too_large


def read_pdf(source: Source, max_bytes: int) -> Results:
    """Yield all pages as one document, and a Failure for each page that cannot be parsed."""
    from pypdf import PdfReader

    # pypdf reports harmless repairs, one line each.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    texts: list[str] = []
    size = failed = 0
    with source.open_rewindable(10 * max_bytes) as file:
        pdf = PdfReader(file)
        if pdf.is_encrypted and not pdf.decrypt(""):
            raise IngestError("has a password; save it without one")
        for number in range(len(pdf.pages)):
            try:
                text = pdf.pages[number].extract_text()
            except Exception as error:  # a parser's own errors are of any kind
                failed += 1
                yield failure(
                    source.name, f"page {number + 1} cannot be parsed ({unparsable(error)})"
                )
                continue
            # NULs and lone surrogates come from fonts without a proper character map.
            text = text.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
            size += len(text.encode("utf-8"))
            if size > max_bytes:
                too_large(size, max_bytes)
            texts.append(text)
    if any(text.strip() for text in texts):
        yield file_document(source, "", "\n\n".join(texts), max_bytes)
    elif not failed:
        raise IngestError("is empty; a scanned PDF needs text recognition (OCR) first")
