"""Files -> documents and chunks in a bank. Whatever fails is named and holds nothing else up."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.access.identity import Identity
from app.access.lists import checked_access
from app.bank.documents import Draft, Piece, known_hashes, store
from app.bank.find import Bank
from app.db.session import Asker, transaction
from app.errors import MembankError, UnavailableError
from app.ingest.document import Document, Failure
from app.ingest.read import read
from app.ingest.split import chunk_hash, split

CountTokens = Callable[[str], int]
# Documents of which it is asked at once whether they are stored already.
_MOST, _MOST_CHARACTERS = 64, 1_000_000


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
    """Store every document found under `paths`, each in a transaction of its own.

    `bank_of` says which bank a document goes to; `allow` is the access list of documents that
    bring none (None: a new document is for everyone, a known one keeps its list). `count`: tokens
    that a chunk takes. `by` is who stores them, None an operator.
    Raises UnavailableError when the database goes away; what was stored stays. Raises
    ForbiddenError where `by` has no scope to write; where it has not the role, the file failed.
    """
    writer = None if by is None else by.may("write").principal
    for some in together(read(paths, max_bytes)):
        yield from stored(some, bank_of, allow, count, writer)


def together(found: Iterable[Document | Failure]) -> Iterator[list[Document | Failure]]:
    """What was found, some at a time: as much as is looked up at once."""
    some: list[Document | Failure] = []
    size = 0
    for each in found:
        some.append(each)
        size += len(each.text) if isinstance(each, Document) else 0
        if len(some) >= _MOST or size >= _MOST_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def stored(
    found: Sequence[Document | Failure],
    bank_of: Callable[[Document], Bank],
    allow: tuple[str, ...] | None,
    count: CountTokens,
    writer: int | None,
    file: str | None = None,
) -> Iterator[Ingested | Failure]:
    """Store what was found in the name of the principal `writer`, None: an operator's; what became
    of each, in order.

    `bank_of`, `allow` and `count` are those of `ingest`; `file`: the uploaded file that it is of.
    Raises UnavailableError when the database goes away.
    """
    banks = [_placed(each, bank_of) for each in found]
    known = _known(found, banks)
    for each, bank in zip(found, banks, strict=True):
        if isinstance(each, Failure) or isinstance(bank, Failure):
            yield each if isinstance(each, Failure) else bank  # type: ignore[misc]
            continue
        try:
            yield _store(each, bank, known, allow, count, writer, file)
        except UnavailableError:
            raise
        except MembankError as error:
            yield Failure(each.source, str(error))


def _placed(found: Document | Failure, bank_of: Callable[[Document], Bank]) -> Bank | Failure:
    if isinstance(found, Failure):
        return found
    try:
        return bank_of(found)
    except UnavailableError:
        raise
    except MembankError as error:
        return Failure(found.source, str(error))


def _known(
    found: Sequence[Document | Failure], banks: Sequence[Bank | Failure]
) -> dict[tuple[int, str], str]:
    """Content hash by bank and document, of those that are stored and whole."""
    ids: dict[tuple[int, int], list[str]] = {}
    for each, bank in zip(found, banks, strict=True):
        if isinstance(each, Document) and isinstance(bank, Bank):
            ids.setdefault((bank.tenant, bank.id), []).append(each.id)
    known: dict[tuple[int, str], str] = {}
    for (tenant, bank_id), some in ids.items():
        with transaction(Asker("worker", tenant)) as connection:
            hashes = known_hashes(connection, tenant, bank_id, some)
        known |= {(bank_id, document): digest for document, digest in hashes.items()}
    return known


def pieces_of(title: str, text: str, count: CountTokens) -> list[Piece]:
    """A document's chunks, ready to be stored. `count`: tokens that a chunk takes."""
    return [
        Piece(chunk.text, chunk.heading, chunk.start, chunk.end, chunk_hash(chunk.text))
        for chunk in split(title, text, count)
    ]


def _store(
    document: Document,
    bank: Bank,
    known: Mapping[tuple[int, str], str],
    allow: tuple[str, ...] | None,
    count: CountTokens,
    writer: int | None,
    file: str | None,
) -> Ingested:
    digest = chunk_hash(f"{document.title}\n{document.text}")
    same = known.get((bank.id, document.id)) == digest
    pieces = None if same else pieces_of(document.title, document.text, count)
    wanted = document.allow if document.allow is not None else allow
    asker = Asker("worker", bank.tenant, writer)
    with transaction(asker) as connection:
        draft = Draft(
            id=document.id,
            source=document.source,
            title=document.title,
            text=document.text,
            access=None if wanted is None else checked_access(connection, bank.tenant, wanted),
            metadata=dict(document.metadata),
            file=file,
        )
        stored = store(connection, asker, bank.id, draft, pieces)
    return Ingested(
        bank.tenant, bank.id, document.id, document.source, stored.status, stored.chunks
    )
