"""A document longer than the model's window: its memories against its beginning in the prompt.

The document consists of a question file's passages in random order, so that an answer may be
anywhere in it. Truncation is what a user without search does: take the text that still fits.
"""

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from app.errors import UsageError
from app.evaluation.corpus import Corpus, Piece, Vectors
from app.evaluation.memories import MemoryStore
from app.evaluation.metrics import Interval, contains, f1, interval
from app.evaluation.plan import Plan
from app.evaluation.questions import Passage, Question, read, sample
from app.evaluation.reading import Answerer
from app.evaluation.retrieval import Retrieved
from app.ingest.split import split
from app.memory.compose import compose
from app.process import console
from app.runtime.identity import cache, count_tokens
from app.runtime.models import Models, models

_MOST_TOKENS = 24
_ROWS = 4
"""Questions of a batch that read a whole window: each keeps its keys and values."""


def document(questions: Sequence[Question], n: int, tokens: int, seed: int) -> tuple[str, int]:
    """Join passages to a text of at least `tokens` tokens; return it and its number of tokens.

    It includes the gold passages of the first n questions. Raises UsageError when there is too
    little text.
    """
    passages: dict[str, Passage] = {}
    for question in questions[:n]:
        passages.update((p.id, p) for p in question.gold_passages)
    for question in questions:
        passages.update((p.id, p) for p in question.passages if p.id not in passages)
    chosen, size = [], 0
    needed = {p.id for question in questions[:n] for p in question.gold_passages}
    for passage in passages.values():
        if size >= tokens and passage.id not in needed:
            break
        chosen.append(f"# {passage.title}\n\n{passage.text}")
        size += count_tokens(chosen[-1])
    if size < tokens:
        raise UsageError(f"the file's passages have {size} tokens, but --tokens asks for {tokens}")
    random.Random(seed).shuffle(chosen)
    return "\n\n".join(chosen), size


def run(
    file: Path, n: int, k: int, tokens: int, adapter: str | None, seed: int, as_json: bool
) -> None:
    """Ask n questions about a long document, from k memories and from its first window.

    Raises UsageError when the file has too few questions or too little text.
    """
    known = [q for q in read(file) if q.answerable and q.gold]
    if len(known) < n:
        raise UsageError(f"{file} has {len(known)} answerable questions, but -n asks for {n}")
    drawn = sample(known, len(known), seed)
    text, size = document(drawn, n, tokens, seed)
    asked = drawn[:n]
    m = models()
    plan = Plan(modes=("memory", "rag"), max_tokens=_MOST_TOKENS, adapter=adapter)
    window, seen = _window(m, asked, text)
    with closing(Answerer(m, MemoryStore.of(m), plan)) as reader:
        told = {
            f"memory, k = {k}": _remembered(m, reader, asked, text, k),
            "truncated": _truncated(m, reader, asked, window),
        }
    inside = [float(any(_body(p) in seen for p in q.gold_passages)) for q in asked]
    scores = {mode: _scores(asked, said) for mode, said in told.items()}
    of_each = [[f1(a, q.answers) for q, a in zip(asked, s, strict=True)] for s in told.values()]
    gain = interval([a - b for a, b in zip(*of_each, strict=True)])
    value = {
        "n": n,
        "document_tokens": size,
        "window_tokens": len(window),
        "in_window": sum(inside) / n,
        "modes": {mode: {name: asdict(i) for name, i in s.items()} for mode, s in scores.items()},
        "f1_memory_less_truncated": asdict(gain),
    }
    if as_json:
        console.print_json(value)
        return
    rows: list[list[object]] = [
        [mode, *(one.points() for one in s.values())] for mode, s in scores.items()
    ]
    console.table(
        f"{n} questions about {size} tokens, of which {len(window)} fit the prompt;"
        f" the passage is among them for {100 * sum(inside) / n:.0f} %",
        ["", "F1", "contains"],
        rows,
    )
    console.say(f"memory less truncated, F1: {gain.points('+')}")


def _window(m: Models, asked: Sequence[Question], text: str) -> tuple[list[int], str]:
    """Ids of the text's beginning that leaves room for question and answer, and that beginning."""
    most = int(m.lm.model.config.max_position_embeddings)
    longest = max(len(m.prompt.tail(q.question)) for q in asked)
    room = most - len(m.prompt.prefix) - longest - _MOST_TOKENS
    ids = m.prompt.chunk(text)[:room]
    return ids, m.prompt.tokenizer.decode(ids)


def _remembered(
    m: Models, reader: Answerer, asked: Sequence[Question], text: str, k: int
) -> list[str]:
    pieces = [Piece("", chunk.text) for chunk in split("", text, count_tokens)]
    vectors = Vectors(m.embedder, m.profile.embedder, cache() / "vectors")
    with console.progress() as bar:
        task = bar.add_task("embedding", total=len(pieces), rate="")
        found = vectors.of([p.text for p in pieces], lambda done: bar.update(task, advance=done))
    words = [question.question for question in asked]
    hits = Corpus(pieces, found).best(words, m.embedder.embed(words), k)
    said = []
    with console.progress() as bar:
        task = bar.add_task("memory", total=len(asked), rate="")
        for question, nearest, relevances in zip(asked, hits.pieces, hits.scores, strict=True):
            texts = tuple(pieces[i].text for i in nearest)
            read = reader.memories("memory", Retrieved(texts, tuple(relevances), texts), k)
            said += reader.said("memory", [question], [read])
            bar.advance(task)
    return said


def _truncated(
    m: Models, reader: Answerer, asked: Sequence[Question], window: list[int]
) -> list[str]:
    """The text's beginning is the same for every question, so it is read once."""
    read = compose([m.encoder.encode([window])], m.lm.rotary, m.encoder.prefix)
    said = list[str]()
    with console.progress() as bar:
        task = bar.add_task("truncated", total=len(asked), rate="")
        for start in range(0, len(asked), _ROWS):
            some = asked[start : start + _ROWS]
            said += reader.said("rag", some, [read] * len(some))
            bar.advance(task, len(some))
    return said


def _scores(asked: Sequence[Question], said: Sequence[str]) -> dict[str, Interval]:
    both = list(zip(asked, said, strict=True))
    return {
        "f1": interval([f1(answer, q.answers) for q, answer in both]),
        "contains": interval([contains(answer, q.answers) for q, answer in both]),
    }


def _body(passage: Passage) -> str:
    return passage.text.strip()[-60:]
