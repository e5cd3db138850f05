"""The memories of one answer: those that it reads now, and all that it has read."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.answer.retrieval import Request, found_for, load, ms
from app.bank.filters import Filter
from app.memory.compose import Memories, compose
from app.memory.kv import KV
from app.runtime.models import models, reading
from app.search.search import Passage
from app.store.blobs import readable

# Characters of the answer that a search sees at most, the last ones: with a question they fit into
# the 512 tokens that the default embedder reads before it cuts.
_RECENT = 1_200


@dataclass(frozen=True)
class Source:
    """A memory that entered an answer, and its share of the prompt's attention.

    The share is that of the last token of the first pass that read the memory: the prompt's, or,
    for a memory that a refresh brought, prompt's and answer's. None for text in the prompt.
    heading, start, end, file_id: its place in the document and where that is from, as in Passage.
    """

    id: int
    document_id: str
    title: str
    source: str
    score: float
    attention: float | None
    heading: str
    start: int
    end: int
    text: str
    file_id: str | None

    @classmethod
    def of(cls, passage: Passage, share: float | None = None) -> "Source":
        p, rounded = passage, None if share is None else round(share, 4)
        of = (p.id, p.document_id, p.title, p.source, round(p.score, 4), rounded)
        return cls(*of, p.heading, p.start, p.end, p.text, p.file_id)


class Recall:
    """What one answer reads: `read` what a search brought, then `again` as often as is wanted.

    swaps: how often `again` brought other memories; search_ms, load_ms: milliseconds that it spent.
    """

    def __init__(
        self,
        request: Request,
        question: str,
        k: int | None,
        least: float,
        where: Filter | None = None,
        adapter: str | None = None,
    ) -> None:
        """`k`: memories at a time; `least` and `where`: which count, as in `find`."""
        self._adapter = reading("memory", adapter).adapter
        self._request, self._question = request, question
        self._k, self._least, self._where = k, least, where
        self._passages: Sequence[Passage] = ()
        self._stored: dict[int, KV] = {}
        self._memories: Memories | None = None
        self._sources: dict[int, Source] = {}
        self.swaps, self.search_ms, self.load_ms = 0, 0.0, 0.0

    def read(self, passages: Sequence[Passage]) -> Memories:
        """These memories, in this order. Those that are being read are not loaded again.

        Raises BlobError that names a memory that is missing or damaged.
        """
        self.sources()  # the shares of those that were read until now
        m = models()
        new = [p for p in passages if p.id not in self._stored]
        loaded = load(self._request, new, m.lm.dtype)
        known = self._stored | {p.id: kv.to(m.lm.device) for p, kv in zip(new, loaded, strict=True)}
        self._passages, self._stored = passages, {p.id: known[p.id] for p in passages}
        stored = list(self._stored.values())
        self._memories = compose([stored], m.lm.rotary, m.encoder.prefix)
        adapter = self._adapter
        if adapter is not None and adapter.preference and len(passages) > 1:
            gains = adapter.gains([[p.relevance for p in passages]])
            self._memories = self._memories.preferring(gains)
        return self._memories

    def again(self, written: str) -> Memories | None:
        """What question and answer so far bring, None when it is what is being read.

        The database decides again what may be read. When nothing is near enough, the present
        memories stay, except those that may no longer be read: in the end the prefix alone.
        """
        started = time.perf_counter()
        words = f"{self._question}\n{written[-_RECENT:]}"
        found = found_for(self._request, words, self._k, self._least, self._where)
        passages = found.passages or self._still_readable()
        searched = time.perf_counter()
        self.search_ms = round(self.search_ms + ms(started, searched), 2)
        if [p.id for p in passages] == list(self._stored):
            return None
        memories = self.read(passages)
        self.swaps += 1
        self.load_ms = round(self.load_ms + ms(searched, time.perf_counter()), 2)
        return memories

    def sources(self) -> list[Source]:
        """Every memory that was read, in the order of first reading."""
        if self._memories is not None:
            shares = self._memories.shares(0, len(self._passages))
            for passage, share in zip(self._passages, shares, strict=True):
                self._sources.setdefault(passage.id, Source.of(passage, share))
        return list(self._sources.values())

    def _still_readable(self) -> list[Passage]:
        allowed = readable(self._request.asker, self._request.profile, list(self._stored))
        return [p for p in self._passages if p.id in allowed]
