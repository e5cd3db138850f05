"""`membank train`: turns question files into an adapter and a record of how it was trained."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.errors import TrainingError
from app.evaluation.corpus import Corpus, Vectors, pieces_of
from app.evaluation.memories import MemoryStore
from app.memory.kv import KV
from app.memory.model.adapter import AdapterMode, load
from app.process import console
from app.runtime.identity import cache, count_tokens
from app.runtime.models import Models, models
from app.training import data
from app.training.checkpoint import whole
from app.training.examples import PLAIN_TOKENS, Example, Examples
from app.training.loop import Outcome, Plan, Point, Progress, Run
from app.training.reader import Loss, Shown, TrainedReader, answer_ids

_LONGEST_QUESTION = 256


@dataclass(frozen=True)
class Trained:
    """What a training run produced."""

    adapter: Path
    record: Path
    outcome: Outcome
    seconds: float

    def json(self) -> dict[str, Any]:
        return {
            "adapter": str(self.adapter),
            "record": str(self.record),
            "steps": self.outcome.curve[-1].step,
            "best": asdict(self.outcome.best),
            "stopped_early": self.outcome.stopped_early,
            "seconds": round(self.seconds, 1),
        }

    def line(self) -> str:
        best, last = self.outcome.best, self.outcome.curve[-1].step
        why = ", ended early" if self.outcome.stopped_early else ""
        return f"{self.adapter}: {last} steps{why}, best loss {best.valid_loss:.3f} at {best.step}"


@dataclass(frozen=True)
class Sheets:
    """Turns examples into the tensors that the reader is trained on, for one mode of reading."""

    models: Models
    store: MemoryStore
    mode: AdapterMode
    distil: bool

    def shown(self, some: Sequence[Example]) -> list[Shown]:
        texts = self.text(some) if self.mode == "rag" or self.distil else []
        read = texts if self.mode == "rag" else self._stored(some)
        taught: Sequence[Sequence[KV] | None] = texts if self.distil else [None] * len(some)
        return [self._one(*example) for example in zip(some, read, taught, strict=True)]

    def _one(self, example: Example, read: Sequence[KV], taught: Sequence[KV] | None) -> Shown:
        m = self.models
        if example.question is None:
            first, *rest = m.prompt.chunk(example.answer)[: PLAIN_TOKENS + 1]
            return Shown(read, example.relevances, [first], rest, teacher=[])
        answer = answer_ids(m.prompt, m.lm, example.answer)
        return Shown(read, example.relevances, m.prompt.tail(example.question), answer, taught)

    def _stored(self, some: Sequence[Example]) -> list[list[KV]]:
        return [[self.store.load(text) for text in one.texts] for one in some]

    def text(self, some: Sequence[Example]) -> list[list[KV]]:
        """Encode each example's texts as one dense memory, equivalent to text in the prompt."""
        m = self.models
        rows = [[i for text in one.texts for i in m.prompt.chunk(text)] for one in some]
        encoded = iter(m.encoder.encode([row for row in rows if row]))
        return [[next(encoded)] if row else [] for row in rows]


def run(
    files: Sequence[Path],
    out: Path,
    plan: Plan,
    *,
    mode: AdapterMode = "memory",
    distil: bool = False,
    resume: bool = False,
    begin: Path | None = None,
) -> Trained:
    """Train a reader adapter for the configured model and profile.

    `begin` is the file of an adapter to start from, of either mode.
    Raises TrainingError, EvaluationError or ModelError with a one-line reason.
    """
    started = time.perf_counter()
    m = models()
    if not resume and (out / "checkpoint.safetensors").exists():
        raise TrainingError(f"{out} already holds a run: add --resume, or give another --out")
    found = data.read(files, _count(m), _LONGEST_QUESTION, plan.seed)
    for line in found.warnings:
        console.complain(f"membank: {line}")
    examples, valid = _examples(m, found, plan)
    store = MemoryStore.of(m)
    reader = TrainedReader(m.lm, plan.rank, plan.seed, m.encoder.prefix)
    first = None if begin is None else load(begin, m.profile.model, m.profile.prefix)
    if first is not None:
        reader.begin_with(first)
    sheets = Sheets(m, store, mode, distil)

    def loss(some: Sequence[Example]) -> Loss:
        return reader.loss(sheets.shown(some))

    identity = {
        "data": found.digest,
        "model": m.profile.model,
        "profile": m.profile.id,
        "mode": mode,
        "distil": distil,
        "begun_from": None if first is None else first.id,
        "dtype": str(m.lm.dtype).removeprefix("torch."),
    }
    adapter = out / f"{mode}.safetensors"

    def validated(point: Point, best: bool) -> None:
        console.complain(
            f"step {point.step}: loss {point.train_loss:.3f}, validation {point.valid_loss:.3f}"
        )
        if not best:
            return
        learnt = reader.adapter(m.profile.model, m.profile.prefix, mode, m.codec.name)
        whole(adapter, learnt.payload())

    this = Run(reader, loss, plan, out, identity, validated)
    if resume:
        console.complain(f"resuming from step {this.resume()}")
    record = out / f"{mode}.json"
    try:
        with _ending_at_a_step(), _bar() as tell:
            outcome = this.train(examples, valid, tell)
    except KeyboardInterrupt:
        raise TrainingError(
            f"interrupted; {this.checkpoint} is intact: continue with --resume"
            if this.checkpoint.exists()
            else "interrupted before the first checkpoint: nothing was saved"
        ) from None
    seconds = time.perf_counter() - started
    about = {
        **identity,
        "files": [str(file.name) for file in files],
        "rows": {"train": len(found.train), "valid": len(found.valid)},
        "codec": m.codec.name,
        "version": version("membank"),
        "plan": asdict(plan),
        "curve": [asdict(point) for point in outcome.curve],
        "best": asdict(outcome.best),
        "stopped_early": outcome.stopped_early,
        "seconds": round(seconds, 1),
    }
    whole(record, (json.dumps(about, indent=1) + "\n").encode())
    return Trained(adapter, record, outcome, seconds)


def _count(m: Models) -> Callable[[str], int]:
    return lambda text: len(m.prompt.tokenizer(text, add_special_tokens=False).input_ids)


def _examples(m: Models, found: data.Data, plan: Plan) -> tuple[Examples, list[Example]]:
    pieces = pieces_of(found.passages.values(), count_tokens)
    vectors = Vectors(m.embedder, m.profile.embedder, cache() / "vectors")
    rows = [*found.train, *found.valid]
    with console.progress() as bar:
        task = bar.add_task("embedding", total=len(pieces) + len(rows), rate="")

        def seen(n: int) -> None:
            bar.update(task, advance=n)

        corpus = Corpus(pieces, vectors.of([piece.text for piece in pieces], seen))
        asked = vectors.of([row.question for row in rows], seen)
    cut = len(found.train)
    held = Examples(corpus, found.valid, asked[cut:], plan.seed)
    valid = [held.asked(position) for position in range(min(plan.valid, len(held)))]
    return Examples(corpus, found.train, asked[:cut], plan.seed), valid


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    with console.progress() as bar:
        task = bar.add_task("training", total=None, rate="")

        def tell(now: Progress) -> None:
            minutes, seconds = divmod(round(now.seconds_left), 60)
            rate = (
                f"loss {now.loss:.3f}, {now.tokens_per_second:.0f} tokens/s,"
                f" {minutes}:{seconds:02} left"
            )
            bar.update(task, total=now.steps, completed=now.step, rate=rate)

        yield tell


@contextmanager
def _ending_at_a_step() -> Iterator[None]:
    """Make SIGTERM interrupt the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
