"""Size against quality: what each way to keep memories small costs in the quality of answers.

Every question is asked once with each setting's memories of its gold passages (what a search would
bring at best), with the same text in the prompt (RAG) and with nothing (closed book), all in one
batch. Each question's results are a line of `answers.jsonl` as soon as they are there: a run that
was cut off goes on where it stopped, and a setting added later is measured alone.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.answer import question as answering
from app.answer.engine import Engine
from app.errors import UsageError
from app.evaluation.questions import Question, sample
from app.evaluation.questions import read as read_questions
from app.ingest.split import split
from app.memory.compose import Memories, compose
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.prompt import CLOSED_INSTRUCTION, Prompt
from app.process import console
from app.runtime.identity import codebooks, count_tokens
from app.runtime.models import Models, adapted, models
from app.settings import settings
from benchmarks import frontier_report
from benchmarks.divergence import Asking, read
from benchmarks.frontier_results import Answer, Asked, Results
from benchmarks.setting import DEFAULT, DENSE, Encoded, Setting, Settings

RAG, CLOSED = "rag", "closed"
_ROWS = 48
"""Rows per batch: each holds its memories, and a copy of them in its cache."""


@dataclass(frozen=True)
class Examiner:
    """A model with what comes before a question: the shared prefix, or that of closed book.

    `adapter` is the one that reads, as MEMBANK_ADAPTER names it.
    """

    models: Models
    engine: Engine
    adapter: str
    closed: Encoder

    @classmethod
    def of(cls, m: Models, engine: Engine, adapter: str) -> "Examiner":
        closed = Encoder(m.lm, Prompt.of(m.lm.tokenizer, CLOSED_INSTRUCTION).prefix)
        return cls(m, engine, adapter, closed)

    def ask(
        self, questions: Sequence[Question], compared: Sequence[Setting], max_tokens: int
    ) -> list[Asked]:
        """Ask questions in all rows; the first of `compared` is the dense reference."""
        sheets = [self._sheet(question, compared) for question in questions]
        readings = read(self.engine, [sheet.asking for sheet in sheets], max_tokens)
        names = [*(setting.name for setting in compared), RAG, CLOSED]
        return [
            Asked(
                question.id,
                sheet.tokens,
                sheet.dense_bytes,
                {
                    name: Answer.of(row.text, question.answers, row.divergence, size)
                    for name, row, size in zip(names, rows, sheet.sizes, strict=True)
                },
            )
            for question, sheet, rows in zip(questions, sheets, readings, strict=True)
        ]

    def _sheet(self, question: Question, compared: Sequence[Setting]) -> "_Sheet":
        m = self.models
        chunks = self.chunks(question)
        dense = m.encoder.encode(chunks)
        small = [setting.apply(Encoded(chunks, dense)) for setting in compared]
        # One chunk as a memory is that text in the prompt already, several are not.
        text = dense if len(dense) == 1 else m.encoder.encode([[i for c in chunks for i in c]])
        memories = [_behind(m.encoder, kvs) for kvs, _ in small]
        rows = [*memories, _behind(m.encoder, text), _behind(self.closed, [])]
        asked = answering.Question(question.question, adapter=self.adapter)
        return _Sheet(
            Asking(asked, m.prompt.tail(question.question), rows),
            [*(size for _, size in small), None, None],
            sum(map(len, chunks)),
            sum(2 * (kv.keys.numel() + kv.values.numel()) for kv in dense),
        )

    def chunks(self, question: Question) -> list[list[int]]:
        """Token ids of the gold passages' chunks, split as a worker splits documents."""
        return [
            self.models.prompt.chunk(chunk.text)
            for passage in question.gold_passages
            for chunk in split(passage.title, passage.text, count_tokens)
        ]


@dataclass(frozen=True)
class _Sheet:
    """A question's rows, the bytes stored for each, and the size of its dense memories."""

    asking: Asking
    sizes: list[int | None]
    tokens: int
    dense_bytes: int


def run(
    files: dict[str, Path],
    numbers: Sequence[int],
    names: Sequence[str],
    out: Path,
    *,
    max_tokens: int = 24,
    seed: int = 0,
    adapter: str = "none",
    as_json: bool = False,
) -> None:
    """Measure the settings `names`, or the default ones, and write table and plot to `out`.

    `adapter`: what reads, as MEMBANK_ADAPTER names it; every row is read with it.

    `files`: question files by the name of their set; `numbers`: how many questions of each.
    Raises UsageError for an unknown setting (`benchmarks.setting`) or numbers that do not fit
    the files, EvaluationError for a file that cannot be read or an `out` of another model.
    """
    if not files:
        raise UsageError("no questions: give --squad FILE, --hotpot FILE or both")
    if len(numbers) == 1:
        numbers = [*numbers] * len(files)
    if len(numbers) != len(files) or min(numbers) < 1:
        raise UsageError("-n is one number of at least 1, or one for each question file")
    asked = {
        name: _drawn(file, n, seed) for (name, file), n in zip(files.items(), numbers, strict=True)
    }
    m = models()
    learnt = adapted("memory", adapter).adapter
    compared = Settings(m.encoder, m.profile.model, codebooks()).of(names or DEFAULT)
    results = Results.of(
        out,
        {
            "model": m.profile.model,
            "dtype": str(m.lm.dtype).removeprefix("torch."),
            "prefix": m.profile.prefix,
            "max_tokens": max_tokens,
            "adapter": "none" if learnt is None else learnt.id,
            "weights": settings().weights,
        },
    )
    with closing(Engine(_ROWS)) as engine:
        _measure(Examiner.of(m, engine, adapter), asked, compared, results, max_tokens)
    found = {
        name: results.asked(name, [question.id for question in questions])
        for name, questions in asked.items()
    }
    rows = [*(setting.name for setting in compared), RAG, CLOSED]
    report = frontier_report.Report.of(found, rows, DENSE)
    report.write(out, results.head)
    if as_json:
        console.print_json(report.json(results.head))
    else:
        report.show()
        console.complain(f"written: {out}/frontier.md, frontier.json, frontier.svg, answers.jsonl")


def _measure(
    reader: Examiner,
    asked: dict[str, list[Question]],
    compared: Sequence[Setting],
    results: Results,
    max_tokens: int,
) -> None:
    """Ask what `results` does not hold yet, adding a line to it for each question."""
    with console.progress() as progress:
        for name, questions in asked.items():
            batches = _batches(name, questions, compared, results)
            left = sum(len(batch) for batch, _ in batches)
            task = progress.add_task(
                name, total=len(questions), completed=len(questions) - left, rate=""
            )
            started, done = time.perf_counter(), 0
            for batch, missing in batches:
                for answered in reader.ask(batch, missing, max_tokens):
                    results.add(name, answered)
                done += len(batch)
                rate = f"{(time.perf_counter() - started) / done:.2f} s each"
                progress.update(task, advance=len(batch), rate=rate)


def _batches(
    name: str,
    questions: Sequence[Question],
    compared: Sequence[Setting],
    results: Results,
) -> list[tuple[list[Question], list[Setting]]]:
    """Yield questions that lack the same settings, with those settings after the dense one."""
    alike: dict[tuple[int, ...], list[Question]] = {}
    for question in questions:
        done = results.known(name, question.id)
        missing = tuple(i for i, s in enumerate(compared) if i and s.name not in done)
        if missing or not done:
            alike.setdefault(missing, []).append(question)
    batches = []
    for missing, some in sorted(alike.items()):
        size = max(1, _ROWS // (len(missing) + 3))
        settings_ = [compared[0], *(compared[i] for i in missing)]
        batches += [(some[i : i + size], settings_) for i in range(0, len(some), size)]
    return batches


def _drawn(file: Path, n: int, seed: int) -> list[Question]:
    fit = [q for q in read_questions(file) if q.answerable and q.gold]
    if len(fit) < n:
        raise UsageError(f"{file} holds {len(fit)} answerable questions, -n asks for {n}")
    return sample(fit, n, seed)


def _behind(encoder: Encoder, kvs: Sequence[KV]) -> Memories:
    return compose([kvs], encoder.lm.rotary, encoder.prefix)
