"""`membank eval`: memory, RAG and closed book on one question file, in one run."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import EvaluationError, UsageError
from app.evaluation.abstention import abstains
from app.evaluation.corpus import Vectors
from app.evaluation.memories import MemoryStore
from app.evaluation.metrics import contains, exact, f1
from app.evaluation.questions import Question, sample
from app.evaluation.questions import read as read_questions
from app.evaluation.reading import answers
from app.evaluation.report import Report, best
from app.evaluation.results import Answered, Results
from app.evaluation.retrieval import Retrieval, Retrieved, read_corpus
from app.memory.compose import Memories, compose
from app.memory.decode.generate import Generator
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.adapter import MODES
from app.memory.model.prompt import CLOSED_INSTRUCTION, Prompt
from app.process import console
from app.runtime.identity import cache, count_tokens, native
from app.runtime.models import Mode, Models, Reading, models, reading
from app.settings import settings

_ROWS, _ROWS_TIMES_K = 32, 96
"""Of a batch: questions, and memories of all of them."""
_TIMED = 12


@dataclass(frozen=True)
class Plan:
    """What is asked: modes, numbers of memories, how many questions (all by default)."""

    modes: tuple[Mode, ...] = ("memory", "rag", "closed")
    ks: tuple[int, ...] = (1, 3, 5)
    n: int | None = None
    seed: int = 0
    max_tokens: int = 24
    gold: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values that cannot be."""
        if not self.ks or not all(1 <= k <= 100 for k in self.ks):
            raise UsageError(f"-k is {','.join(map(str, self.ks))}: give numbers from 1 to 100")
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n is {self.n}: give at least 1")
        for mode in self.modes:
            if mode not in ("memory", "rag", "closed"):
                raise UsageError(f"--mode names {mode!r}: memory, rag, closed or several by commas")

    def columns(self) -> list[tuple[Mode, int]]:
        """Mode and k of each answer; k is 0 where nothing is read."""
        ks = sorted(set(self.ks))
        return [(m, k) for m in self.modes for k in ((0,) if m == "closed" else ks)]


class Reader:
    """Reads questions of one length, from what was found for them, in any mode."""

    def __init__(self, m: Models, store: MemoryStore, plan: Plan) -> None:
        self._m, self._store, self._plan = m, store, plan
        self._prompt = dict.fromkeys(plan.modes, m.prompt)
        self._prompt["closed"] = Prompt.of(m.lm.tokenizer, CLOSED_INSTRUCTION)
        self._closed = Encoder(m.lm, self._prompt["closed"].prefix)

    def tail(self, mode: Mode, question: Question) -> list[int]:
        return self._prompt[mode].tail(question.question)

    def read(self, mode: Mode) -> Reading:
        return reading(mode, self._plan.adapter)

    def answers(
        self, mode: Mode, ks: Sequence[int], asked: Sequence[tuple[Question, Retrieved]]
    ) -> Iterator[tuple[int, Question, str]]:
        """k, question and answer, for each k. Texts are read once for all numbers of them."""
        if mode == "rag":
            texts = self._texts([found for _, found in asked], max(ks))
        for k in ks:
            size = max(1, min(_ROWS, _ROWS_TIMES_K // max(1, k)))
            for start in range(0, len(asked), size):
                some = asked[start : start + size]
                tails = [self.tail(mode, question) for question, _ in some]
                read = [found for _, found in some]
                if mode == "rag":
                    memories = self._composed(mode, [[cut(k)] for cut in texts[start:][:size]])
                else:
                    memories = self.memories(mode, read, k)
                said = answers(self.read(mode).lm, tails, memories, self._plan.max_tokens)
                for (question, _), answer in zip(some, said, strict=True):
                    yield k, question, answer

    def memories(self, mode: Mode, read: Sequence[Retrieved], k: int) -> Memories:
        """What is in front of the questions: k memories of each, k texts as one, or nothing."""
        if mode == "closed":
            return self._composed(mode, [[] for _ in read])
        if mode == "rag":
            return self._composed(mode, [[cut(k)] for cut in self._texts(read, k)])
        rows = [[self._store.load(text) for text in found.texts[:k]] for found in read]
        memories = self._composed(mode, rows)
        adapter = self.read(mode).adapter
        if adapter is None or k == 1:
            return memories
        return memories.preferring(adapter.gains([list(found.relevances[:k]) for found in read]))

    def _composed(self, mode: Mode, rows: Sequence[Sequence[KV]]) -> Memories:
        encoder = self._closed if mode == "closed" else self._m.encoder
        return compose(rows, self._m.lm.rotary, encoder.prefix)

    def _texts(self, read: Sequence[Retrieved], most: int) -> list[Callable[[int], KV]]:
        """The first k texts of each as one dense memory: the same as text in the prompt.

        A text does not see what comes after it, so the first of them are the beginning of all.
        """
        chunks = [[self._m.prompt.chunk(text) for text in found.texts[:most]] for found in read]
        whole = self._m.encoder.encode([[i for c in row for i in c] for row in chunks])

        def cut(kv: KV, lengths: list[int]) -> Callable[[int], KV]:
            def first(k: int) -> KV:
                end = sum(lengths[:k])
                return KV(kv.keys[:, :, :end], kv.values[:, :, :end])

            return first

        return [cut(kv, [len(c) for c in row]) for kv, row in zip(whole, chunks, strict=True)]


def run(
    file: Path, plan: Plan, corpus: Path | None = None, out: Path | None = None
) -> tuple[Report, dict[str, Any]]:
    """Ask the questions of a file; returns the report and what `--json` prints.

    `corpus`: passages that are searched beside the questions' own; `out`: folder of answers, table
    and plot, from which a run that was cut off goes on.
    Raises EvaluationError for a file that cannot be read, or an `out` of another evaluation.
    """
    questions = _drawn(file, plan)
    passages, alike = read_corpus(corpus)
    m = models()
    results = Results(out and out / "answers.jsonl", _head(m, plan, file, corpus))
    vectors = Vectors(m.embedder, m.profile.embedder, cache() / "vectors")
    with console.progress() as bar:
        task = bar.add_task("embedding", total=None, rate="")

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = Retrieval.of(
            questions, passages, alike, vectors, count_tokens, max(plan.ks), plan.gold, told
        )
    store = MemoryStore.of(m, keep=200)
    reader = Reader(m, store, plan)
    _ask(reader, questions, found, plan, results)
    columns = {
        (mode, k): [got for q in questions if (got := results.get(mode, k, q.id)) is not None]
        for mode, k in plan.columns()
    }
    report = Report.of(file.name, columns)
    times = {mode: _first_token(reader, m, mode, questions, found, report) for mode in plan.modes}
    value = report.json(times)
    if out is not None:
        report.write(out, value)
    return report, value


def _ask(
    reader: Reader, questions: Sequence[Question], found: Retrieval, plan: Plan, results: Results
) -> None:
    """Ask what `results` does not hold, questions of one length at a time."""
    columns = plan.columns()
    total = len(columns) * len(questions)
    left = [(mode, q) for mode, k in columns for q in questions if not results.get(mode, k, q.id)]
    with console.progress() as bar:
        task = bar.add_task("asking", total=total, completed=total - len(left), rate="")
        for mode in plan.modes:
            ks = [k for m, k in columns if m == mode]
            waiting = {q.id: q for m, q in left if m == mode}.values()
            for some in _groups(reader, mode, list(waiting)):
                asked = [(q, found[q.id]) for q in some]
                for k, question, answer in reader.answers(mode, ks, asked):
                    if results.get(mode, k, question.id) is None:
                        recall = found.recall(question, k) if k else None
                        results.add(_scored(mode, k, question, answer, recall))
                        bar.update(task, advance=1)


def _groups(reader: Reader, mode: Mode, questions: Sequence[Question]) -> Iterator[list[Question]]:
    alike: dict[int, list[Question]] = {}
    for question in questions:
        alike.setdefault(len(reader.tail(mode, question)), []).append(question)
    for _, some in sorted(alike.items()):
        yield from (some[start : start + _ROWS] for start in range(0, len(some), _ROWS))


def _scored(mode: Mode, k: int, question: Question, answer: str, recall: float | None) -> Answered:
    right = question.answers if question.answerable else ()
    return Answered(
        *(mode, k, question.id, answer),
        *(contains(answer, right), f1(answer, right), exact(answer, right)),
        *(recall, abstains(answer), question.answerable),
    )


def _first_token(
    reader: Reader,
    m: Models,
    mode: Mode,
    questions: Sequence[Question],
    found: Retrieval,
    report: Report,
) -> float:
    """Median over a few questions, ms: the question's vector, load or reading, and first token."""
    k = best([score for score in report.scores if score.mode == mode]).k
    generator = Generator(reader.read(mode).lm, settings().weights, native())
    times = []
    for question in [questions[0], *questions[:_TIMED]]:
        started = time.perf_counter()
        if mode != "closed":
            m.embedder.embed([question.question])
        memories = reader.memories(mode, [found[question.id]], k)
        said = generator.generate(reader.tail(mode, question), 1, memories)
        times.append(1000 * (said.first_token - started))
    return round(statistics.median(times[1:]), 1)


def _drawn(file: Path, plan: Plan) -> list[Question]:
    questions = list(read_questions(file))
    if not questions:
        raise EvaluationError(f"{file} holds no questions")
    if plan.n is not None and plan.n > len(questions):
        raise UsageError(f"{file} holds {len(questions)} questions, -n asks for {plan.n}")
    return sample(questions, plan.n or len(questions), plan.seed)


def _head(m: Models, plan: Plan, file: Path, corpus: Path | None) -> dict[str, Any]:
    """What decides the answers, whichever modes are asked in this run."""
    adapters = {}
    for mode in MODES:
        adapter = reading(mode, plan.adapter).adapter
        adapters[mode] = "none" if adapter is None else adapter.id
    return {
        "file": file.name,
        "corpus": None if corpus is None else corpus.name,
        "gold": plan.gold,
        "profile": m.profile.id,
        "dtype": str(m.lm.dtype).removeprefix("torch."),
        "adapters": adapters,
        "max_tokens": plan.max_tokens,
    }
