"""`membank eval`: memory, RAG and closed book on one question file, in one run."""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from app.errors import EvaluationError, UsageError
from app.evaluation.abstention import abstains
from app.evaluation.corpus import Vectors
from app.evaluation.memories import MemoryStore
from app.evaluation.metrics import contains, exact, f1
from app.evaluation.plan import Plan
from app.evaluation.questions import Question, sample
from app.evaluation.questions import read as read_questions
from app.evaluation.reading import Answerer
from app.evaluation.report import Report, best
from app.evaluation.results import Answered, Results
from app.evaluation.retrieval import Retrieval, read_corpus
from app.memory.model.adapter import MODES
from app.process import console
from app.runtime.identity import cache, count_tokens
from app.runtime.models import Mode, Models, adapted, models
from app.settings import settings

_TIMED = 12


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
    with closing(Answerer(m, MemoryStore.of(m, keep=200), plan)) as reader:
        _ask(reader, questions, found, plan, results)
        columns = {
            (mode, k): [got for q in questions if (got := results.get(mode, k, q.id)) is not None]
            for mode, k in plan.columns()
        }
        report = Report.of(file.name, columns)
        times = {
            mode: _first_token(reader, m, mode, questions, found, report) for mode in plan.modes
        }
    value = report.json(times)
    if out is not None:
        report.write(out, value)
    return report, value


def _ask(
    reader: Answerer, questions: Sequence[Question], found: Retrieval, plan: Plan, results: Results
) -> None:
    """Ask what `results` does not hold."""
    columns = plan.columns()
    total = len(columns) * len(questions)
    left = [(mode, q) for mode, k in columns for q in questions if not results.get(mode, k, q.id)]
    with console.progress() as bar:
        task = bar.add_task("asking", total=total, completed=total - len(left), rate="")
        for mode in plan.modes:
            ks = [k for m, k in columns if m == mode]
            waiting = {q.id: q for m, q in left if m == mode}.values()
            asked = [(q, found[q.id]) for q in waiting]
            for k, question, answer in reader.answers(mode, ks, asked):
                if results.get(mode, k, question.id) is None:
                    recall = found.recall(question, k) if k else None
                    results.add(_scored(mode, k, question, answer, recall))
                    bar.update(task, advance=1)


def _scored(mode: Mode, k: int, question: Question, answer: str, recall: float | None) -> Answered:
    right = question.answers if question.answerable else ()
    return Answered(
        *(mode, k, question.id, answer),
        *(contains(answer, right), f1(answer, right), exact(answer, right)),
        *(recall, abstains(answer), question.answerable),
    )


def _first_token(
    reader: Answerer,
    m: Models,
    mode: Mode,
    questions: Sequence[Question],
    found: Retrieval,
    report: Report,
) -> float:
    """Median over a few questions, ms: the question's vector, load or reading, and first token."""
    k = best([score for score in report.scores if score.mode == mode]).k
    times = []
    for question in [questions[0], *questions[:_TIMED]]:
        started = time.perf_counter()
        if mode != "closed":
            m.embedder.embed([question.question])
        job = reader.begin(mode, question, reader.memories(mode, found[question.id], k), 1)
        for _ in job:
            pass
        times.append(1000 * (job.generation().first_token - started))
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
        adapter = adapted(mode, plan.adapter).adapter
        adapters[mode] = "none" if adapter is None else adapter.id
    return {
        "file": file.name,
        "corpus": None if corpus is None else corpus.name,
        "gold": plan.gold,
        "profile": m.profile.id,
        "dtype": str(m.lm.dtype).removeprefix("torch."),
        "weights": settings().weights,
        "adapters": adapters,
        "max_tokens": plan.max_tokens,
    }
