"""A question -> an answer with its sources: from memory, from text in the prompt, or neither."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from app.access.tenants import find_bank, find_principal
from app.answer.generate import Generation
from app.bank.search import Passage, load_blobs, search
from app.bank.session import Asker
from app.errors import BlobError, UsageError
from app.memory.codec import unpack
from app.memory.compose import compose
from app.memory.kv import KV
from app.memory.prompt import closed_book
from app.runtime import Mode, Models, codec, generator, models, reading, require_profile
from app.settings import settings

NOTHING = "The bank holds nothing for this question that you may read."
_LONGEST_QUESTION = 8_000


@dataclass(frozen=True)
class Source:
    """A memory that entered an answer, and its share of the prompt's attention."""

    id: int
    document_id: str
    title: str
    source: str
    score: float
    attention: float | None


@dataclass(frozen=True)
class Answer:
    """Times are in milliseconds from the question on, first_token and total whole."""

    answer: str
    mode: Mode
    memories: list[Source]
    timings_ms: dict[str, float]
    usage: dict[str, int]

    def json(self) -> dict[str, Any]:
        return asdict(self)


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


def find(reader: Reader, question: str, k: int | None = None) -> Found:
    """The k memories nearest to a question that the reader may read, whatever their score."""
    text, k = _checked(question), _checked_k(k)
    started = time.perf_counter()
    vector = models().embedder.embed([text])[0]
    embedded = time.perf_counter()
    passages = search(reader.asker, reader.bank, reader.profile, vector.tolist(), k)
    now = time.perf_counter()
    return Found(
        passages,
        {"embed": _ms(started, embedded), "search": _ms(started, now), "total": _ms(started, now)},
    )


def ask(
    reader: Reader,
    question: str,
    *,
    k: int | None = None,
    mode: Mode = "memory",
    max_tokens: int = 64,
    min_score: float | None = None,
) -> Answer:
    """Answer a question. When nothing readable is near enough, the answer says so.

    Raises UsageError for an empty question, one beyond the model's window, or k out of range.
    """
    if max_tokens < 1:
        raise UsageError(f"--max-tokens is {max_tokens}: give at least 1")
    text, m = _checked(question), models()
    tail = m.prompt.tail(text)
    _require_room(m, len(tail) + max_tokens)
    generator(mode)  # what is loaded once belongs to no answer's time
    started = time.perf_counter()
    if mode == "closed":
        return _closed(m, text, max_tokens, started)
    found = find(reader, text, k)
    least = settings().min_score if min_score is None else min_score
    passages = [p for p in found.passages if p.score >= least]
    if not passages:
        return _nothing(mode, started, found)
    if mode == "memory":
        return _from_memory(reader, m, tail, passages, max_tokens, started, found)
    return _from_text(m, text, passages, max_tokens, started, found)


def load(reader: Reader, passages: Sequence[Passage], dtype: torch.dtype) -> list[KV]:
    """The memories of `passages`, decoded. Raises BlobError that names a memory that is missing."""
    payloads = load_blobs(reader.asker, reader.profile, [p.id for p in passages])
    memories = []
    for passage in passages:
        if passage.id not in payloads:
            raise BlobError(f"memory {passage.id} of {passage.document_id} is gone: ask again")
        try:
            memories.append(unpack(payloads[passage.id], reader.profile, codec(), dtype))
        except BlobError as error:
            raise BlobError(
                f"memory {passage.id} of document {passage.document_id!r}: {error}"
            ) from error
    return memories


def _from_memory(
    reader: Reader,
    m: Models,
    tail: list[int],
    passages: list[Passage],
    max_tokens: int,
    started: float,
    found: Found,
) -> Answer:
    before = time.perf_counter()
    stored = [kv.to(m.lm.device) for kv in load(reader, passages, m.lm.dtype)]
    memories = compose([stored], m.lm.rotary, m.encoder.prefix)
    adapter = reading("memory").adapter
    if adapter is not None and adapter.preference and len(passages) > 1:
        memories = memories.preferring(adapter.gains([[p.score for p in passages]]))
    loaded = time.perf_counter()
    generation = generator("memory").generate(tail, max_tokens, memories)
    shares = memories.shares(0, len(passages))
    return _answer(
        "memory", generation, passages, shares, started, found, load_ms=_ms(before, loaded)
    )


def _from_text(
    m: Models, question: str, passages: list[Passage], max_tokens: int, started: float, found: Found
) -> Answer:
    chunks = [m.prompt.chunk(p.text) for p in passages]
    ids = m.prompt.with_text(chunks, question)
    _require_room(m, len(ids) + max_tokens)
    if reading("rag").adapter is None:
        generation = generator("rag").generate(ids, max_tokens)
    else:
        # The adapter acts on the question alone: text is read by the model that encodes.
        before = time.perf_counter()
        text = m.encoder.encode([[i for chunk in chunks for i in chunk]])
        memories = compose([text], m.lm.rotary, m.encoder.prefix)
        generation = generator("rag").generate(m.prompt.tail(question), max_tokens, memories)
        generation = replace(generation, prompt_tokens=len(ids), memory_entries=0, started=before)
    shares = [None] * len(passages)
    return _answer("rag", generation, passages, shares, started, found, load_ms=0.0)


def _closed(m: Models, question: str, max_tokens: int, started: float) -> Answer:
    generation = generator().generate(closed_book(m.lm.tokenizer, question), max_tokens)
    return _answer("closed", generation, [], [], started, Found([], {}), load_ms=0.0)


def _answer(
    mode: Mode,
    generation: Generation,
    passages: Sequence[Passage],
    shares: Sequence[float | None],
    started: float,
    found: Found,
    load_ms: float,
) -> Answer:
    sources = [
        Source(
            p.id,
            p.document_id,
            p.title,
            p.source,
            round(p.score, 4),
            None if share is None else round(share, 4),
        )
        for p, share in zip(passages, shares, strict=True)
    ]
    timings = {
        "search": found.timings_ms.get("search", 0.0),
        "load": load_ms,
        "prefill": _ms(generation.started, generation.first_token),
        "first_token": _ms(started, generation.first_token),
        "total": _ms(started, time.perf_counter()),
    }
    usage = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": len(generation.tokens),
        "memory_tokens": generation.memory_entries,
    }
    return Answer(generation.text, mode, sources, timings, usage)


def _nothing(mode: Mode, started: float, found: Found) -> Answer:
    now = _ms(started, time.perf_counter())
    timings = {
        "search": found.timings_ms["search"],
        "load": 0.0,
        "prefill": 0.0,
        "first_token": now,
        "total": now,
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "memory_tokens": 0}
    return Answer(NOTHING, mode, [], timings, usage)


def _checked(question: str) -> str:
    text = question.replace("\x00", " ").strip()
    if not text:
        raise UsageError("the question is empty: write what you want to know")
    if len(text.split()) > _LONGEST_QUESTION:
        raise UsageError(
            f"the question has {len(text.split())} words, at most {_LONGEST_QUESTION} are taken:"
            " shorten it, or ingest the long text as a document"
        )
    return text


def _checked_k(k: int | None) -> int:
    chosen = settings().top_k if k is None else k
    if not 1 <= chosen <= 100:
        raise UsageError(f"k is {chosen}: give 1 to 100")
    return chosen


def _require_room(m: Models, tokens: int) -> None:
    window = m.lm.model.config.get_text_config().max_position_embeddings
    if tokens > window:
        raise UsageError(
            f"question and answer need {tokens} tokens, the model's window is {window}:"
            " shorten the question, or lower -k or --max-tokens"
        )


def _ms(since: float, until: float) -> float:
    return round((until - since) * 1000, 2)
