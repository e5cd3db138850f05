"""A question -> an answer with its sources: from memory, from text in the prompt, or neither."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.answer.generate import Generation, Refresh
from app.answer.recall import Recall, Source
from app.answer.retrieval import Found, Reader, checked, found_for, ms
from app.bank.audit import note
from app.bank.filters import Filter
from app.bank.quota import begin_request, count_tokens
from app.bank.search import Passage
from app.bank.session import transaction
from app.errors import UsageError
from app.memory.compose import compose
from app.memory.prompt import closed_book
from app.runtime import Mode, Models, generator, models, reading
from app.settings import LEAST_REFRESH, settings

NOTHING = "The bank holds nothing for this question that you may read."
_NO_TIME = dict.fromkeys(
    (
        *("search", "load", "prefill", "first_token", "total"),
        *("refresh", "refresh_search", "refresh_load"),
    ),
    0.0,
)


@dataclass(frozen=True)
class Answer:
    """Times are in milliseconds from the question on, first_token and total whole.

    refreshes: how often memories were searched for again, in `refresh` milliseconds of the total,
    of which refresh_search and refresh_load; the rest read the live tokens again. swaps: how often
    that brought other memories. memory_tokens are those of the memories that were read last.
    """

    answer: str
    mode: Mode
    memories: list[Source]
    timings_ms: dict[str, float]
    usage: dict[str, int]
    refreshes: int = 0
    swaps: int = 0

    def json(self) -> dict[str, Any]:
        return asdict(self)


def ask(
    reader: Reader,
    question: str,
    *,
    k: int | None = None,
    mode: Mode = "memory",
    max_tokens: int = 64,
    min_score: float | None = None,
    refresh_every: int | None = None,
    where: Filter | None = None,
) -> Answer:
    """Answer a question. When nothing readable is near enough, the answer says so.

    `where`: what the metadata of the documents must be that it is answered from; all by default.

    After every `refresh_every` tokens memories are searched for again, with question and answer so
    far; 0: never; None: as MEMBANK_REFRESH_EVERY says. Only answers from memory are refreshed.
    The audit log notes which memories entered the answer, and nothing of what was said.
    Raises UsageError for an empty question, one beyond the model's window, or a value out of range;
    QuotaError when the day's requests or tokens are used up.
    """
    if max_tokens < 1:
        raise UsageError(f"--max-tokens is {max_tokens}: give at least 1")
    every = _checked_refresh(refresh_every, mode)
    text, m = checked(question), models()
    tail = m.prompt.tail(text)
    _require_room(m, len(tail) + max_tokens)
    generator(mode)  # what is loaded once belongs to no answer's time
    started = time.perf_counter()
    begin_request(reader.asker)
    if mode == "closed":
        answer = _closed(m, text, max_tokens, started)
    else:
        reader = reader.now()  # and so to the answer's end, also when the bank is switched
        least = settings().min_score if min_score is None else min_score
        found = found_for(reader, text, k, least, where)
        passages = found.passages
        if not passages:
            answer = _nothing(mode, started, found)
        elif mode == "memory":
            recall = Recall(reader, text, k, least, where)
            answer = _from_memory(recall, tail, passages, max_tokens, every, started, found)
        else:
            answer = _from_text(m, text, passages, max_tokens, started, found)
    _record(reader, answer)
    return answer


def _record(reader: Reader, answer: Answer) -> None:
    documents = [source.document_id for source in answer.memories]
    chunks = [source.id for source in answer.memories]
    tokens = answer.usage["prompt_tokens"] + answer.usage["completion_tokens"]
    with transaction(reader.asker) as connection:
        tenant = reader.asker.tenant
        detail = {"mode": answer.mode, "tokens": tokens}
        note(connection, tenant, "ask", reader.bank, documents, chunks, detail)
        count_tokens(connection, tokens)


def _from_memory(
    recall: Recall,
    tail: list[int],
    passages: list[Passage],
    max_tokens: int,
    every: int,
    started: float,
    found: Found,
) -> Answer:
    before = time.perf_counter()
    memories = recall.read(passages)
    loaded = time.perf_counter()
    refresh = Refresh(every, recall.again) if every else None
    generation = generator("memory").generate(tail, max_tokens, memories, refresh=refresh)
    answer = _answer("memory", generation, recall.sources(), started, found, ms(before, loaded))
    spent = {"refresh_search": recall.search_ms, "refresh_load": recall.load_ms}
    return replace(answer, timings_ms=answer.timings_ms | spent, swaps=recall.swaps)


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
    return _answer("rag", generation, [Source.of(p) for p in passages], started, found)


def _closed(m: Models, question: str, max_tokens: int, started: float) -> Answer:
    generation = generator().generate(closed_book(m.lm.tokenizer, question), max_tokens)
    return _answer("closed", generation, [], started, Found([], {}))


def _answer(
    mode: Mode,
    generation: Generation,
    sources: list[Source],
    started: float,
    found: Found,
    load_ms: float = 0.0,
) -> Answer:
    timings = _NO_TIME | {
        "search": found.timings_ms.get("search", 0.0),
        "load": load_ms,
        "prefill": ms(generation.started, generation.first_token),
        "first_token": ms(started, generation.first_token),
        "total": ms(started, time.perf_counter()),
        "refresh": ms(0.0, generation.refreshing),
    }
    usage = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": len(generation.tokens),
        "memory_tokens": generation.memory_entries,
    }
    return Answer(generation.text, mode, sources, timings, usage, generation.refreshes)


def _nothing(mode: Mode, started: float, found: Found) -> Answer:
    now = ms(started, time.perf_counter())
    timings = _NO_TIME | {
        "search": found.timings_ms["search"],
        "first_token": now,
        "total": now,
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "memory_tokens": 0}
    return Answer(NOTHING, mode, [], timings, usage)


def _checked_refresh(every: int | None, mode: Mode) -> int:
    """Tokens between two searches, 0 for none."""
    if every is None:
        return settings().refresh_every if mode == "memory" else 0
    if every and every < LEAST_REFRESH:
        raise UsageError(f"--refresh-every is {every}: give 0 (never) or at least {LEAST_REFRESH}")
    if every and mode != "memory":
        raise UsageError(
            f"--refresh-every is {every} with --mode {mode}: only memories can be swapped in the"
            " middle of an answer; leave it out, or use --mode memory"
        )
    return every


def _require_room(m: Models, tokens: int) -> None:
    window = m.lm.model.config.get_text_config().max_position_embeddings
    if tokens > window:
        raise UsageError(
            f"question and answer need {tokens} tokens, the model's window is {window}:"
            " shorten the question, or lower -k or --max-tokens"
        )
