"""Files -> documents and chunks in a bank. Whatever fails is named and holds nothing else up."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.access.identity import Identity
from app.access.lists import checked_access
from app.bank.documents import Draft, Piece, known_hash, store
from app.bank.find import Bank
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
    by: Identity | None = None,
) -> Iterator[Ingested | Failure]:
    """Store every document found under `paths`, each in its own transaction.

    `bank_of` says which bank a document goes to; `allow` is the access list of documents that
    bring none (None: a new document is for everyone, a known one keeps its list). `count`: tokens
    that a chunk takes. `by` is who stores them, None an operator.
    Raises UnavailableError when the database goes away; what was stored stays. Raises
    ForbiddenError where `by` has no scope to write; where it has not the role, the file failed.
    """
    writer = None if by is None else by.may("write").principal
    for found in read(paths, max_bytes):
        yield stored(found, bank_of, allow, count, writer)


def stored(
    found: Document | Failure,
    bank_of: Callable[[Document], Bank],
    allow: tuple[str, ...] | None,
    count: CountTokens,
    writer: int | None,
    file: str | None = None,
) -> Ingested | Failure:
    """Store what was found, as in `ingest`, in the name of the principal `writer`.

    `file`: the uploaded file that it is of.
    """
    if isinstance(found, Failure):
        return found
    try:
        return _store(found, bank_of(found), allow, count, writer, file)
    except UnavailableError:
        raise
    except MembankError as error:
        return Failure(found.source, str(error))


def pieces_of(title: str, text: str, count: CountTokens) -> list[Piece]:
    """A document's chunks, ready to be stored. `count`: tokens that a chunk takes."""
    return [
        Piece(chunk.text, chunk.heading, chunk.start, chunk.end, chunk_hash(chunk.text))
        for chunk in split(title, text, count)
    ]


def _store(
    document: Document,
    bank: Bank,
    allow: tuple[str, ...] | None,
    count: CountTokens,
    writer: int | None,
    file: str | None,
) -> Ingested:
    wanted = document.allow if document.allow is not None else allow
    access = None if wanted is None else checked_access(bank.tenant, wanted)
    draft = Draft(
        id=document.id,
        source=document.source,
        title=document.title,
        text=document.text,
        access=access,
        metadata=dict(document.metadata),
        file=file,
    )
    same = known_hash(bank.tenant, bank.id, document.id) == chunk_hash(
        f"{document.title}\n{document.text}"
    )
    pieces = None if same else pieces_of(document.title, document.text, count)
    stored = store(bank.tenant, bank.id, draft, pieces, writer)
    return Ingested(
        bank.tenant, bank.id, document.id, document.source, stored.status, stored.chunks
    )
