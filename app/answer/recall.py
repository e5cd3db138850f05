"""The memories of one answer, and what is said of them beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.answer.retrieval import Request, load
from app.memory.compose import Memories, compose
from app.runtime.models import adapted, models
from app.search.search import Passage


@dataclass(frozen=True)
class Source:
    """A memory that entered an answer, and its share of the prompt's attention.

    attention: of the prompt's last token, mean over heads and layers; None for text in the prompt.
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


def recall(request: Request, passages: Sequence[Passage], adapter: str | None) -> Memories:
    """The memories of `passages`, in their order, behind the shared prefix.

    adapter: what the model reads with, None for what the settings name; one that prefers relevant
    memories weighs several by their relevance. Raises BlobError that names a memory that is missing
    or damaged, VaultError for one that does not open.
    """
    m, chosen = models(), adapted("memory", adapter).adapter
    stored = [kv.to(m.lm.device) for kv in load(request, passages, m.lm.dtype)]
    memories = compose([stored], m.lm.rotary, m.encoder.prefix)
    if chosen is not None and chosen.preference and len(passages) > 1:
        return memories.preferring(chosen.gains([[p.relevance for p in passages]]))
    return memories
