"""Editing without training: an answer is replaced in its passage, and the question asked again.

Each passage is encoded before and after the edit. Measured is how often the answer is then the new
one, and how often still the old one. RAG reads the same text in its prompt.
"""

import random
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import UsageError
from app.evaluation.corpus import Corpus, pieces_of
from app.evaluation.memories import MemoryStore
from app.evaluation.metrics import Interval, contains, interval
from app.evaluation.plan import Plan
from app.evaluation.questions import Question, read, sample
from app.evaluation.reading import Answerer
from app.evaluation.retrieval import Retrieved
from app.process import console
from app.runtime.identity import count_tokens
from app.runtime.models import Mode, models

_MODES: tuple[Mode, ...] = ("memory", "rag")
_MOST_TOKENS = 16
_NO_VECTORS = torch.empty(0, 0)


@dataclass(frozen=True)
class Edit:
    """A piece of text before and after an edit, and the answer it gives each time."""

    question: Question
    old: str
    new: str
    before: str
    after: str


@dataclass(frozen=True)
class Told:
    """A mode's answers to an edit."""

    before: str
    after: str


def edits(questions: Sequence[Question], n: int, seed: int) -> list[Edit]:
    """Return at most n edits, each replacing an answer that its passage states literally.

    The new answer is that of another question and of the same shape: it has as many words, digits
    where the old one has digits, and does not occur in the passage.
    """
    known = [q.answers[0] for q in questions if q.answerable and q.gold and len(q.answers[0]) < 40]
    found = []
    for question in sample([q for q in questions if q.answerable and q.gold], len(questions), seed):
        corpus = Corpus(pieces_of(question.gold_passages, count_tokens), _NO_VECTORS)
        old = question.answers[0]
        (piece, *_) = corpus.gold(question.gold, question.answers, question.question)
        text = corpus.pieces[piece].text
        where = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")
        if not where.search(text) or where.search(question.question):
            continue
        chance = random.Random(f"{seed}:{question.id}")
        others = [
            other for other in known if _shape(other) == _shape(old) and not contains(text, [other])
        ]
        if not others:
            continue
        new = chance.choice(others)
        edited = new.join(where.split(text))
        found.append(Edit(question, old, new, text, edited))
        if len(found) == n:
            break
    return found


def run(file: Path, n: int, adapter: str | None, seed: int, as_json: bool) -> None:
    """Ask before and after n edits, from memory and RAG, and print how often each answer comes.

    Raises UsageError when too few answers in the file occur in their passage.
    """
    some = edits(list(read(file)), n, seed)
    if len(some) < n:
        raise UsageError(f"{file} yields only {len(some)} edits, but -n asks for {n}")
    m = models()
    plan = Plan(modes=_MODES, max_tokens=_MOST_TOKENS, adapter=adapter)
    told: dict[Mode, list[Told]] = {mode: [] for mode in _MODES}
    with closing(Answerer(m, MemoryStore.of(m), plan)) as reader, console.progress() as bar:
        task = bar.add_task("edits", total=n, rate="")
        for edit in some:
            for mode in _MODES:
                told[mode].append(_ask(reader, mode, edit))
            bar.advance(task)
    value = {"n": n, "modes": {mode: _scores(some, told[mode]) for mode in _MODES}}
    if as_json:
        console.print_json(value)
        return
    head = ["mode", "old, before", "new, after", "old, after", "right before: new after"]
    rows: list[list[object]] = []
    for mode in _MODES:
        found: dict[str, Any] = value["modes"][mode]  # type: ignore[index]
        rows.append([mode, *(Interval(**one).points() for one in found.values())])
    console.table(f"{n} edits, share of answers in points with 95 % intervals", head, rows)


def _ask(reader: Answerer, mode: Mode, edit: Edit) -> Told:
    found = [Retrieved((text,), (1.0,), ("",)) for text in (edit.before, edit.after)]
    read = [reader.memories(mode, one, 1) for one in found]
    return Told(*reader.said(mode, [edit.question] * 2, read))


def _scores(some: Sequence[Edit], told: Sequence[Told]) -> dict[str, Any]:
    right = [contains(t.before, [e.old]) for e, t in zip(some, told, strict=True)]
    new = [contains(t.after, [e.new]) for e, t in zip(some, told, strict=True)]
    old = [contains(t.after, [e.old]) for e, t in zip(some, told, strict=True)]
    followed = [n for n, r in zip(new, right, strict=True) if r]
    return {
        "old_before": asdict(interval(right)),
        "new_after": asdict(interval(new)),
        "old_after": asdict(interval(old)),
        "new_after_where_right_before": asdict(interval(followed or [0.0])),
    }


def _shape(answer: str) -> tuple[int, bool, bool]:
    return len(answer.split()), any(c.isdigit() for c in answer), answer[:1].isupper()
