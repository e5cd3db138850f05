"""Tokens per second with and without memories, and whole answers, compared with llama.cpp on RAG.

Membank and llama.cpp each have a process, with the same weights and passages. All ways take turns
in every round, so that a disturbance of the machine affects all alike. Search and loading are not
included; `bench ttft` measures them.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from app.demo.sample import HANDBOOKS
from app.errors import ModelError, UsageError
from app.memory.compose import Memories, compose
from app.memory.decode.decoder import Decoder, ModelDecoder, Weights, decoder_of
from app.memory.decode.flat import Start
from app.memory.kv import KV
from app.memory.model.prompt import closed_book
from app.process import console
from app.runtime.identity import native
from app.runtime.models import Models, models
from benchmarks.peer import Peer, PeerError

QUESTION = "For how many weeks do I get full pay when I am sick?"
LLAMA, MODULES = "llama.cpp", "transformers"
_CHUNK, _STEPS = 128, 32
_ANSWERS = (32, 128)
Times = dict[str, float]
"""Milliseconds per token with and without memories, and per whole answer."""


@dataclass(frozen=True)
class Task:
    """What every competitor reads: the same passages, as memories and as text."""

    models: Models
    stored: list[KV]
    tail: list[int]
    closed: list[int]
    rag: list[int]

    @classmethod
    def of(cls, k: int) -> "Task":
        """A question after `k` chunks of 128 tokens from the sample handbooks."""
        m = models()
        words = "\n\n".join(file.read_text() for file in sorted(HANDBOOKS.glob("*/*.md")))
        ids = m.prompt.chunk(words)
        chunks = [ids[i * _CHUNK : (i + 1) * _CHUNK] for i in range(k)]
        if len(chunks[-1]) < _CHUNK:
            raise UsageError(f"-k is {k}, but the sample has text for {len(ids) // _CHUNK} only")
        rag = [*m.prompt.prefix, *(i for chunk in chunks for i in chunk)]
        tail = m.prompt.tail(QUESTION)
        closed = closed_book(m.lm.tokenizer, QUESTION)
        return cls(m, m.encoder.encode(chunks), tail, closed, rag + tail)

    def memories(self) -> Memories:
        return compose([self.stored], self.models.lm.rotary, self.models.encoder.prefix)


def run(rounds: int, k: int, llama_python: Path | None, as_json: bool) -> None:
    """Measure and print the tables."""
    if rounds < 1 or k < 1:
        raise UsageError("-n and -k must be at least 1")
    task = Task.of(k)
    competitors, missing = _ours(task)
    with ExitStack() as stack:
        try:
            peer = stack.enter_context(Peer(llama_python))
            competitors[LLAMA] = partial(_theirs, task, peer)
        except PeerError as error:
            missing[LLAMA] = str(error)
        found = measure(competitors, rounds)
    if as_json:
        console.print_json({"rounds": rounds, "k": k, "ms": found, "missing": missing})
    else:
        report(found, missing, rounds, k)


def measure(competitors: dict[str, Callable[[], Times]], rounds: int) -> dict[str, Times]:
    """Return each competitor's medians over the rounds, after one warm-up round."""
    found: dict[str, list[Times]] = {name: [] for name in competitors}
    for number in range(rounds + 1):
        for name, once in competitors.items():
            times = once()
            if number:
                found[name].append(times)
    return {
        name: {what: median(times[what] for times in rows) for what in rows[0]}
        for name, rows in found.items()
    }


def report(found: dict[str, Times], missing: dict[str, str], rounds: int, k: int) -> None:
    """Print decode speed and whole answers, each with its ratio to llama.cpp's."""
    base = found.get(LLAMA)
    rows: list[list[object]] = []
    for name, times in found.items():
        row: list[object] = [name, 1000 / times["without"], 1000 / times["with"]]
        row.append(f"{times['without'] / times['with']:.2f}")
        for what in ("with", *map(str, _ANSWERS)):
            if what != "with":
                row.append(times[what])
            row.append(f"{base[what] / times[what]:.2f}x" if base else "")
        rows.append(row)
    answers = [cell for n in _ANSWERS for cell in (f"{n} tokens, ms", "against llama.cpp")]
    console.table(
        f"k = {k}, medians of {rounds} rounds; tokens a second; whole answers in ms",
        ["weights", "without", "with memories", "with/without", "against llama.cpp", *answers],
        rows,
    )
    for name, why in missing.items():
        console.say(f"{name}: {why}")


def _ours(task: Task) -> tuple[dict[str, Callable[[], Times]], dict[str, str]]:
    """Return the choices of weights that run here, transformers' modules, and why others cannot."""
    lm = task.models.lm
    found: dict[str, Callable[[], Times]] = {}
    missing: dict[str, str] = {}
    choices: tuple[Weights, ...] = get_args(Weights)
    for weights in choices:
        try:
            found[weights] = partial(_measured, task, decoder_of(lm, weights, native()))
        except ModelError as error:
            missing[weights] = str(error)
    found[MODULES] = partial(_measured, task, ModelDecoder(lm))
    return found, missing


@torch.inference_mode()
def _measured(task: Task, decoder: Decoder) -> Times:
    _, without = _answer(decoder, task.closed, _STEPS, None)
    times = {"without": without / (_STEPS - 1)}
    for n in _ANSWERS:
        started = time.perf_counter()
        memories = task.memories()
        composed = (time.perf_counter() - started) * 1000
        first, rest = _answer(decoder, task.tail, n, memories)
        times[str(n)] = composed + first + rest
        times["with"] = rest / (n - 1)
    return times


def _answer(
    decoder: Decoder, prompt: Sequence[int], n: int, memories: Memories | None
) -> tuple[float, float]:
    """Milliseconds to the first token, and for the n - 1 after it. End tokens are ignored."""
    started = time.perf_counter()
    [reading] = decoder.read([Start(prompt, n, memories)])
    token = int(reading.logits.argmax())
    first = time.perf_counter()
    for _ in range(n - 1):
        decoder.feed([reading], [token])
        token = int(reading.logits.argmax())
    return (first - started) * 1000, (time.perf_counter() - first) * 1000


def _theirs(task: Task, peer: Peer) -> Times:
    without = peer.complete(task.closed, _STEPS)
    times = {"without": _each(without, _STEPS)}
    for n in _ANSWERS:
        answer = peer.complete(task.rag, n)
        times[str(n)] = answer["total_ms"]
        times["with"] = _each(answer, n)
    return times


def _each(answer: dict[str, Any], n: int) -> float:
    return float(answer["total_ms"] - answer["first_token_ms"]) / (n - 1)
