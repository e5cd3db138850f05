"""Who asks which bank, what a search brings them, and the memories themselves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.access.audit import note
from app.access.principals import find_principal
from app.access.quota import count_request
from app.access.tenants import of_tenant
from app.answer.cache import cache
from app.bank.filters import Filter
from app.bank.find import asked_bank, find_bank
from app.db.session import Asker, transaction
from app.errors import BlobError, UsageError
from app.memory.codec.pack import Codec, check, decode
from app.memory.kv import KV
from app.process.tracing import span
from app.runtime.models import codec_of, models
from app.search.search import Passage, search
from app.settings import settings
from app.store.blobs import Held, fetch, readable

_LONGEST_QUESTION = 8_000


@dataclass(frozen=True)
class Found:
    """What a search brings, and the time it took in milliseconds, embedding included."""

    passages: list[Passage]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Reader:
    """Who asks which bank, any number of questions.

    bank: its id, or the name of one that the asker may read.
    """

    asker: Asker
    bank: int | str

    @classmethod
    def of(cls, tenant: str, bank: str, principal: str) -> "Reader":
        """By their names. Raises NotFoundError for one that is unknown."""
        with of_tenant("app", tenant) as (connection, owner):
            found = find_bank(connection, owner.tenant or 0, bank)
            return cls(find_principal(connection, found.tenant, principal), found.id)

    def begin(self) -> "Request":
        """Begin to ask or to search, under the profile that the bank has now.

        Raises NotFoundError for a bank that is not there, or by its name not for the asker;
        QuotaError when the day's requests are used up; ProfileError for a bank that this process
        cannot read.
        """
        with transaction(self.asker) as connection:
            bank = asked_bank(connection, self.asker, self.bank)
            count_request(connection, self.asker)
        return Request(self.asker, bank.id, bank.profile, codec_of(bank))


@dataclass(frozen=True)
class Request:
    """A question or a search that was let in and counted; profile and codec are the bank's, to
    its end, also when the bank is switched to others meanwhile."""

    asker: Asker
    bank: int
    profile: str
    codec: Codec


def find(
    reader: Reader,
    question: str,
    k: int | None = None,
    least: float = -1.0,
    where: Filter | None = None,
) -> Found:
    """The k memories that fit a question best, of those that the reader may read.

    least: cosine below which one does not count; where: what the metadata of its document must be.
    Counts as a request and is noted in the audit log. Raises UsageError for a question that is
    empty or too long, k or `least` out of range, or a filter on a field that there is not; and what
    `Reader.begin` raises.
    """
    words = checked(question)
    request = reader.begin()
    found = found_for(request, words, k, least, where)
    with transaction(request.asker) as connection:
        documents = [p.document_id for p in found.passages]
        chunks = [p.id for p in found.passages]
        note(connection, request.asker.tenant, "search", request.bank, documents, chunks)
    return found


@span("search")
def found_for(
    request: Request, words: str, k: int | None, least: float, where: Filter | None = None
) -> Found:
    """The k memories that fit any text best, as a part of a request that was let in.

    k None: as the settings say; `least` and `where` as in `find`. Raises UsageError for k or
    `least` out of range, or a filter on a field that there is not.
    """
    if not -1 <= least <= 1:
        raise UsageError(f"the least score is {least}: give -1 to 1")
    k = _checked_k(k)
    started = time.perf_counter()
    vector = models().embedder.embed([words])[0]
    embedded = time.perf_counter()
    of = (request.asker, request.bank, request.profile)
    passages = search(*of, vector.tolist(), k, words, least, where)
    now = time.perf_counter()
    return Found(
        passages,
        {"embed": ms(started, embedded), "search": ms(started, now), "total": ms(started, now)},
    )


@span("load")
def load(request: Request, passages: Sequence[Passage], dtype: torch.dtype) -> list[KV]:
    """The memories of `passages`, decoded. They may be others' too: nobody may write to them.

    What may be read is decided in the database first; then they come from the nearest tier.
    Raises BlobError that names a memory that is missing, VaultError for one that does not open.
    """
    documents = {p.id: p.document_id for p in passages}

    def fetched(wanted: Sequence[Held]) -> dict[int, bytes]:
        return fetch(request.asker, request.profile, wanted)

    def decoded(payloads: Sequence[tuple[Held, bytes]]) -> list[KV]:
        whole = []
        for held, payload in payloads:
            try:
                whole.append(check(payload, request.profile, request.codec))
            except BlobError as error:
                place = f"memory {held.chunk} of document {documents[held.chunk]!r}"
                raise BlobError(f"{place}: {error}") from error
        return decode(whole, request.codec, dtype)

    found: dict[int, KV] = {}
    rows: dict[int, Held] = {}
    for _ in range(2):  # a row may be moved or sealed anew between the look and the fetch
        if missing := [chunk for chunk in documents if chunk not in found]:
            rows = readable(request.asker, request.profile, missing)
            found |= cache().load(list(rows.values()), dtype, fetched, decoded)
    for passage in passages:
        if passage.id not in found:
            place = f"memory {passage.id} of document {passage.document_id!r}"
            row = rows.get(passage.id)
            if row is not None and row.location is not None:
                raise BlobError(
                    f"{place}: its object {row.location} is missing: delete its row of memory_blob,"
                    " and it is encoded again"
                )
            raise BlobError(f"{place} is gone: ask again; membank reconcile makes it anew")
    return [found[passage.id] for passage in passages]


def checked(question: str) -> str:
    """The question as it is asked. Raises UsageError for an empty one and one too long."""
    text = question.replace("\x00", " ").strip()
    if not text:
        raise UsageError("the question is empty: write what you want to know")
    if len(text.split()) > _LONGEST_QUESTION:
        raise UsageError(
            f"the question has {len(text.split())} words, at most {_LONGEST_QUESTION} are taken:"
            " shorten it, or ingest the long text as a document"
        )
    return text


def ms(since: float, until: float) -> float:
    """Milliseconds between two times of time.perf_counter."""
    return round((until - since) * 1000, 2)


def _checked_k(k: int | None) -> int:
    chosen = settings().top_k if k is None else k
    if not 1 <= chosen <= 100:
        raise UsageError(f"k is {chosen}: give 1 to 100")
    return chosen
