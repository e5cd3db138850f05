"""Files -> documents and chunks in a bank. Whatever fails is named and holds nothing else up."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.access.tenants import Bank, checked_access
from app.bank.documents import Draft, Piece, known_hash, store
from app.errors import MembankError, UnavailableError
from app.ingest.document import Document, Failure
from app.ingest.read import read
from app.ingest.split import chunk_hash, split

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Ingested:
    """A document that is stored: its status (new, changed, unchanged) and its chunks."""

    tenant: int
    bank: int
    id: str
    source: str
    status: str
    chunks: int


def ingest(
    paths: Iterable[Path],
    bank_of: Callable[[Document], Bank],
    allow: tuple[str, ...] | None,
    count: CountTokens,
    max_bytes: int,
) -> Iterator[Ingested | Failure]:
    """Store every document found under `paths`, each in its own transaction.

    `bank_of` says which bank a document goes to; `allow` is the access list of documents that
    bring none (None: a new document is for everyone, a known one keeps its list).
    Raises UnavailableError when the database goes away; what was stored stays.
    """
    for found in read(paths, max_bytes):
        if isinstance(found, Failure):
            yield found
            continue
        try:
            yield _store(found, bank_of(found), allow, count)
        except UnavailableError:
            raise
        except MembankError as error:
            yield Failure(found.source, str(error))


def pieces_of(title: str, text: str, count: CountTokens) -> list[Piece]:
    """A document's chunks, ready to be stored."""
    return [
        Piece(chunk.text, chunk.heading, chunk.start, chunk.end, chunk_hash(chunk.text))
        for chunk in split(title, text, count)
    ]


def _store(
    document: Document, bank: Bank, allow: tuple[str, ...] | None, count: CountTokens
) -> Ingested:
    wanted = document.allow if document.allow is not None else allow
    access = None if wanted is None else checked_access(bank, wanted)
    draft = Draft(
        id=document.id,
        source=document.source,
        title=document.title,
        text=document.text,
        access=access,
        metadata=dict(document.metadata),
    )
    same = known_hash(bank.tenant, bank.id, document.id) == chunk_hash(
        f"{document.title}\n{document.text}"
    )
    pieces = None if same else pieces_of(document.title, document.text, count)
    stored = store(bank.tenant, bank.id, draft, pieces)
    return Ingested(
        bank.tenant, bank.id, document.id, document.source, stored.status, stored.chunks
    )
