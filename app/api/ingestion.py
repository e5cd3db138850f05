"""Files into banks, in the thread of the request. Encoding is left to the workers."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.access.identity import Identity
from app.access.tenants import Bank
from app.api.files import sight
from app.bank import attachments, files
from app.bank.files import File
from app.ingest.upload import Splitting, store_upload
from app.runtime import count_tokens, require_splitting
from app.settings import settings


def put(
    who: Identity,
    bank: Bank,
    given: Sequence[tuple[File, Mapping[str, Any]]],
    allow: Sequence[str] | None = None,
    batch: str | None = None,
) -> None:
    """Store files with their attributes in a bank, in the caller's name; what becomes of each is
    noted beside it.

    allow: the list of documents that bring none; None: everyone, or what a known one has. Raises
    ForbiddenError where the caller is no writer of the bank.
    """
    if not given:
        return
    attached = [(file.id, attributes) for file, attributes in given]
    attachments.attach(who.asker, bank.id, attached, batch)
    how = Splitting(
        count_tokens, settings().context, settings().max_document_bytes, require_splitting
    )
    listed = None if allow is None else tuple(allow)
    for file, attributes in given:
        content = files.content(sight(who), file.id)
        store_upload(who.asker, bank, file, content, attributes, listed, how)
