"""PDF files -> documents, page by page."""

import logging

from app.errors import IngestError
from app.ingest.document import Results, failure, unparsable
from app.ingest.source import Source
from app.ingest.text import file_document, too_large


def read_pdf(source: Source, max_bytes: int) -> Results:
    """The document of all pages; a page that cannot be parsed is a Failure of its own."""
    from pypdf import PdfReader

    # It reports repairs that lose nothing, line by line.
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
            # A font without a proper map of characters gives these; they are no text.
            text = text.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
            size += len(text.encode("utf-8"))
            if size > max_bytes:
                too_large(size, max_bytes)
            texts.append(text)
    if any(text.strip() for text in texts):
        yield file_document(source, "", "\n\n".join(texts), max_bytes)
    elif not failed:
        raise IngestError("is empty; a scanned PDF needs text recognition (OCR) first")
