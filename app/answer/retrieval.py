"""Who asks which bank, what a search brings them, and the memories themselves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.access.tenants import find_bank, find_principal
from app.bank.filters import Filter
from app.bank.search import Passage, load_blobs, search
from app.bank.session import Asker
from app.errors import BlobError, UsageError
from app.memory.codec import check, decode
from app.memory.kv import KV
from app.runtime import codec, models, require_profile
from app.settings import settings

_LONGEST_QUESTION = 8_000


@dataclass(frozen=True)
class Found:
    """What a search brings, and the time it took in milliseconds, embedding included."""

    passages: list[Passage]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Reader:
    """Who asks which bank: looked up once, used for any number of questions."""

    asker: Asker
    bank: int
    profile: str

    @classmethod
    def of(cls, tenant: str, bank: str, principal: str) -> "Reader":
        """Raises NotFoundError for an unknown name, ProfileError for a foreign bank."""
        found = find_bank(tenant, bank)
        asker = find_principal(tenant, principal)
        require_profile(bank, found.profile)
        return cls(asker, found.id, found.profile)


def find(
    reader: Reader,
    question: str,
    k: int | None = None,
    least: float = -1.0,
    where: Filter | None = None,
) -> Found:
    """The k memories that fit a question best, of those that the reader may read.

    least: cosine below which one does not count; where: what the metadata of its document must be.
    Raises UsageError for a question that is empty or too long, k or `least` out of range, or a
    filter on a field that there is not.
    """
    if not -1 <= least <= 1:
        raise UsageError(f"the least score is {least}: give -1 to 1")
    return found_for(reader, checked(question), k, least, where)


def found_for(
    reader: Reader, words: str, k: int | None, least: float, where: Filter | None = None
) -> Found:
    """The same for any text. Raises UsageError for k out of range."""
    k = _checked_k(k)
    started = time.perf_counter()
    vector = models().embedder.embed([words])[0]
    embedded = time.perf_counter()
    of = (reader.asker, reader.bank, reader.profile)
    passages = search(*of, vector.tolist(), k, words, least, where)
    now = time.perf_counter()
    return Found(
        passages,
        {"embed": ms(started, embedded), "search": ms(started, now), "total": ms(started, now)},
    )


def load(reader: Reader, passages: Sequence[Passage], dtype: torch.dtype) -> list[KV]:
    """The memories of `passages`, decoded. Raises BlobError that names a memory that is missing."""
    payloads = load_blobs(reader.asker, reader.profile, [p.id for p in passages])
    checked = []
    for passage in passages:
        if passage.id not in payloads:
            raise BlobError(f"memory {passage.id} of {passage.document_id} is gone: ask again")
        try:
            checked.append(check(payloads[passage.id], reader.profile, codec()))
        except BlobError as error:
            raise BlobError(
                f"memory {passage.id} of document {passage.document_id!r}: {error}"
            ) from error
    return decode(checked, codec(), dtype)


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
