"""Questions to a bank, answered: what is said while it is said, and what there is to know of it."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from app.access.audit import note
from app.access.quota import count_tokens
from app.answer.question import Question
from app.answer.recall import Source, recall
from app.answer.retrieval import Found, Reader, Request, found_for, ms
from app.db.session import transaction
from app.errors import UsageError
from app.memory.compose import Memories
from app.memory.decode.generate import Finish, Telling, Unencoded, Wanted
from app.memory.decode.pieces import Stops
from app.memory.model.prompt import closed_book
from app.process import metrics
from app.process.tracing import past
from app.runtime.models import Mode, Models, adapted, generator, models

NOTHING = "The bank holds nothing for this question that you may read."
_NO_TIME = dict.fromkeys(("search", "load", "queue", "prefill", "first_token", "total"), 0.0)


@dataclass(frozen=True)
class Answer:
    """Times are in milliseconds from the question on, first_token and total whole; queue: until
    the model took it up.

    finished: why it ended, None for one that was cut off.
    """

    answer: str
    mode: Mode
    memories: list[Source]
    timings_ms: dict[str, float]
    usage: dict[str, int]
    finished: Finish = "stop"

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Generates(Protocol):
    """What computes answers: this thread, or an engine that many threads share."""

    def __call__(self, question: Question, wanted: Wanted, tenant: int) -> Telling: ...


def here(question: Question, wanted: Wanted, tenant: int) -> Telling:
    """Compute it in this thread, one answer at a time."""
    return generator(question.mode, question.adapter).stream(wanted)


def ask(reader: Reader, question: str, **how: Any) -> Answer:
    """Answer a question. When nothing readable is near enough, the answer says so.

    `how`: the fields of Question. Raises what Answering raises.
    """
    asked = Question(question, **how)
    generator(asked.mode, asked.adapter)  # what is loaded once belongs to no answer's time
    answering = Answering(reader, asked)
    for _ in answering:
        pass
    return answering.answer()


class Answering:
    """An answer that is being given: iterate once over its text, then ask for the whole."""

    def __init__(self, reader: Reader, question: Question, generates: Generates = here) -> None:
        """Search and load, under the rights of this moment; begin to compute.

        Raises UsageError for a prompt beyond the model's window, BlobError for a memory that is
        damaged, and what `Reader.begin` and `generates` raise.
        """
        self._question, self._generates = question, generates
        self._started = time.perf_counter()
        self._handed = self._started
        self._text, self._stops = "", Stops(question.stop)
        self._load_ms, self._found = 0.0, Found([], {})
        self._memories: Memories | None = None
        self._request = reader.begin()
        self._stream = self._begin()

    def __iter__(self) -> Iterator[str]:
        """What is said, in pieces. The audit log notes at the end which memories entered it, and
        nothing of what was said."""
        try:
            yield from self._pieces()
        finally:
            self.cancel()
            record(self._request, self._ended())

    def cancel(self) -> None:
        """Let no more be computed. Harmless at any time, from any thread."""
        if self._stream is not None:
            self._stream.cancel()

    def _ended(self) -> Answer:
        """What was said, counted and noted as a part of the trace."""
        answer, mode = self.answer(), self._question.mode
        metrics.answered(mode, answer.timings_ms, answer.usage)
        if self._stream is not None:
            began = self._stream.generation().started
            past("model", began, mode=mode, finished=str(answer.finished), **answer.usage)
        return answer

    @property
    def sources(self) -> list[Source]:
        """What is being read, the shares of attention as far as they are known."""
        passages, memories = self._found.passages, self._memories
        if memories is None or self._stream is None:
            return [Source.of(passage) for passage in passages]
        shares = self._stream.shares.of(memories, 0, len(passages))
        return [Source.of(*one) for one in zip(passages, shares, strict=True)]

    def answer(self) -> Answer:
        """What was said so far."""
        timings = dict(_NO_TIME)
        timings["search"] = self._found.timings_ms.get("search", 0.0)
        timings["load"] = self._load_ms
        timings["total"] = ms(self._started, time.perf_counter())
        if self._stream is None:
            timings["first_token"] = timings["total"]
            return Answer(NOTHING, self._question.mode, [], timings, _usage(0, 0, 0))
        said = self._stream.generation()
        timings["queue"] = max(0.0, ms(self._handed, said.started))
        timings["prefill"] = ms(said.started, said.first_token)
        timings["first_token"] = ms(self._started, said.first_token)
        entries = 0 if self._memories is None else said.memory_entries
        return Answer(
            self._text,
            self._question.mode,
            self.sources,
            timings,
            _usage(self._prompt_tokens, len(said.tokens), entries),
            "stop" if self._stops.met else said.finished,
        )

    def _begin(self) -> Telling | None:
        """None when nothing readable is near enough."""
        asked, m = self._question, models()
        if asked.mode == "closed":
            ids = closed_book(m.lm.tokenizer, asked.told, asked.turns)
            _require_room(m, len(ids) + asked.max_tokens)
            return self._generate(ids, None)
        tail = m.prompt.tail(asked.told, asked.turns)
        _require_room(m, len(tail) + asked.max_tokens)
        self._found = self._search()
        if not self._found.passages:
            return None
        return self._from_memory(tail) if asked.mode == "memory" else self._from_text(tail)

    def _search(self) -> Found:
        asked = self._question
        found = [
            found_for(self._request, words, asked.k, asked.threshold, asked.where)
            for words in asked.searches
        ]
        return max(found, key=lambda one: max((p.score for p in one.passages), default=-1.0))

    def _from_memory(self, tail: list[int]) -> Telling:
        asked, before = self._question, time.perf_counter()
        self._memories = recall(self._request, self._found.passages, asked.adapter)
        self._load_ms = ms(before, time.perf_counter())
        return self._generate(tail, self._memories)

    def _from_text(self, tail: list[int]) -> Telling:
        asked, m = self._question, models()
        chunks = [m.prompt.chunk(passage.text) for passage in self._found.passages]
        ids = m.prompt.with_text(chunks, asked.told, asked.turns)
        _require_room(m, len(ids) + asked.max_tokens)
        if adapted("rag", asked.adapter).adapter is None:
            return self._generate(ids, None)
        # The adapter acts on the question alone: text is read by the model that encodes.
        text = Unencoded([token for chunk in chunks for token in chunk], m.encoder)
        stream = self._generate(tail, text)
        self._prompt_tokens = len(ids)
        return stream

    def _generate(self, prompt: list[int], memories: Memories | Unencoded | None) -> Telling:
        self._prompt_tokens = len(prompt)
        asked, tenant = self._question, self._request.asker.tenant or 0
        self._handed = time.perf_counter()
        wanted = Wanted(prompt, asked.max_tokens, memories, asked.sampling)
        return self._generates(asked, wanted, tenant)

    def _pieces(self) -> Iterator[str]:
        if self._stream is None:
            yield NOTHING
            return
        for piece in self._stream:
            shown = self._stops.push(piece)
            self._text += shown
            if shown:
                yield shown
            if self._stops.met:
                return
        if shown := self._stops.end():
            self._text += shown
            yield shown


def record(request: Request, answer: Answer) -> None:
    """Note what an answer was made of, and count its tokens."""
    documents = [source.document_id for source in answer.memories]
    chunks = [source.id for source in answer.memories]
    tokens = answer.usage["prompt_tokens"] + answer.usage["completion_tokens"]
    with transaction(request.asker) as connection:
        tenant = request.asker.tenant
        detail = {"mode": answer.mode, "tokens": tokens}
        note(connection, tenant, "ask", request.bank, documents, chunks, detail)
        count_tokens(connection, tokens)


def _usage(prompt: int, completion: int, memory: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "memory_tokens": memory}


def _require_room(m: Models, tokens: int) -> None:
    if tokens > m.window:
        raise UsageError(
            f"question and answer need {tokens} tokens, the model's window is {m.window}:"
            " shorten the question, or lower k or the longest answer"
        )
