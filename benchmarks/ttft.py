"""Time to first token: memory, text in the prompt (RAG) and closed book, side by side.

All modes use the same process, model, passages and questions, and embedding, search and loading are
included. Memories are loaded from the database each time, as if nobody had asked for them before.
The modes take turns within each question, so that a disturbance of the machine affects all alike.
RAG uses our decoder, as memory does; transformers' own `generate`, and llama.cpp in a separate
process, read the same passages with the same weights and take turns like a mode.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from app.answer.ask import Answer, ask
from app.answer.retrieval import Reader, find
from app.demo import sample
from app.errors import UsageError
from app.process import console
from app.runtime.identity import prompt
from app.runtime.models import Mode, models
from benchmarks.peer import Peer, PeerError
from benchmarks.variables import WITHOUT_CACHE, variables

MODES: tuple[Mode, ...] = get_args(Mode)
LLAMA, GENERATE = "llama.cpp rag", "transformers rag"
PEERS = ("rag", GENERATE, LLAMA)
_MIN_SCORE = -1.0  # every passage counts, so that all modes read k of them


@dataclass(frozen=True)
class Row:
    """Medians over the questions: times in milliseconds, and tokens per question."""

    first_token_ms: float
    search_ms: float
    load_ms: float
    prefill_ms: float
    tokens_processed: float
    memory_tokens: float

    @classmethod
    def of(cls, answer: Answer) -> "Row":
        times, usage = answer.timings_ms, answer.usage
        return cls(
            times["first_token"],
            times["search"],
            times["load"],
            times["prefill"],
            usage["prompt_tokens"],
            usage["memory_tokens"],
        )


@dataclass(frozen=True)
class Plan:
    """The questions, the numbers of memories, and the Python of the peer, if one is given."""

    questions: list[str]
    ks: list[int]
    llama_python: Path | None

    @classmethod
    def of(
        cls, questions: Sequence[str], n: int, ks: Sequence[int], llama_python: Path | None = None
    ) -> "Plan":
        """Repeat `questions` up to `n`. Raises UsageError when there is nothing to ask."""
        if n < 1:
            raise UsageError(f"-n is {n}: it must be at least 1")
        if bad := [k for k in ks if not 1 <= k <= 100]:
            raise UsageError(f"-k is {bad[0]}: it must be 1 to 100")
        asked = [questions[i % len(questions)] for i in range(n)]
        return cls(asked, list(dict.fromkeys(ks)), llama_python)


Rows = dict[str, Row]


def questions_of(file: Path | None) -> list[str]:
    """Read the questions of a JSONL file, or those of the sample handbooks.

    Raises UsageError naming the file when it cannot be read or holds no questions.
    """
    if file is None:
        return [q.question for q in sample.questions()]
    try:
        lines = file.read_text().splitlines()
        found = [str(json.loads(line)["question"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is not a JSONL file with a `question` on each line: {error}"
        ) from None
    if not found:
        raise UsageError(f"{file} holds no questions")
    return found


def run_on_sample(plan: Plan, as_json: bool) -> None:
    """Measure on the sample handbooks in a temporary stack and print the table."""
    with sample.temporary_stack(console.complain):
        sample.fill()
        run_on(Reader.of("northwind", sample.BANK, "hana"), plan, as_json)


def run_on(reader: Reader, plan: Plan, as_json: bool) -> None:
    """Measure on a bank and print the table."""
    with ExitStack() as stack:
        stack.enter_context(variables(**WITHOUT_CACHE))
        peer, missing = None, None
        try:
            peer = stack.enter_context(Peer(plan.llama_python))
        except PeerError as error:
            missing = str(error)
        found = {k: measure(reader, plan.questions, k, peer) for k in plan.ks}
    if as_json:
        console.print_json(summary(found, len(plan.questions), missing))
    else:
        report(found, len(plan.questions), missing)


def measure(reader: Reader, questions: Sequence[str], k: int, peer: Peer | None = None) -> Rows:
    """Ask every question in every mode for one token, after a warm-up question."""
    found: dict[str, list[Row]] = {}
    for number, question in enumerate([questions[0], *questions]):
        rows: Rows = {}
        for mode in MODES:
            answer = ask(reader, question, k=k, mode=mode, max_tokens=1, least=_MIN_SCORE)
            rows[mode] = Row.of(answer)
        rows[GENERATE] = _peer_row(reader, question, k, _generate_ms)
        if peer:
            rows[LLAMA] = _peer_row(reader, question, k, peer.first_token_ms)
        if number:
            for name, row in rows.items():
                found.setdefault(name, []).append(row)
    return {mode: _medians(rows) for mode, rows in found.items()}


def report(found: dict[int, Rows], questions: int, missing: str | None = None) -> None:
    """Print a table of each mode's first token compared with RAG's and, if measured, llama.cpp's.

    `missing` says why there is no peer.
    """
    peers = [name for name in PEERS if any(name in modes for modes in found.values())]
    rows: list[list[object]] = []
    for k, modes in found.items():
        for mode, row in modes.items():
            times = [row.first_token_ms, row.search_ms, row.load_ms, row.prefill_ms]
            tokens = [int(row.tokens_processed), int(row.memory_tokens)]
            rows.append([k, mode, *times, *tokens, *_ratios(modes, peers, row)])
    console.table(
        f"medians of {questions} questions; milliseconds; tokens that the model processes",
        [
            "k",
            "mode",
            "first",
            "search",
            "load",
            "prefill",
            "tokens",
            "in memory",
            *(f"times {name}" for name in peers),
        ],
        rows,
    )
    if missing:
        console.say(f"{LLAMA}: {missing}")


def _ratios(modes: Rows, peers: Sequence[str], row: Row) -> list[str]:
    firsts = [modes[name].first_token_ms if name in modes else None for name in peers]
    return ["" if first is None else f"{first / row.first_token_ms:.1f}x" for first in firsts]


def summary(found: dict[int, Rows], n: int, missing: str | None) -> dict[str, Any]:
    """The results for JSON. The first k's rows are also under `k` and `modes`, as with one k."""
    by_k = [
        {"k": k, "modes": {mode: asdict(row) for mode, row in rows.items()}}
        for k, rows in found.items()
    ]
    return {"n": n, **by_k[0], "by_k": by_k, "llama_missing": missing}


def _peer_row(
    reader: Reader, question: str, k: int, first_token_ms: Callable[[list[int]], float]
) -> Row:
    """Measure a search, as every mode does, and then a peer's first token after the RAG prompt."""
    found = find(reader, question, k)
    words = prompt()
    ids = words.with_text([words.chunk(p.text) for p in found.passages], question)
    prefill = first_token_ms(ids)
    search = found.timings_ms["search"]
    return Row(search + prefill, search, 0.0, prefill, len(ids), 0)


@torch.inference_mode()
def _generate_ms(prompt: list[int]) -> float:
    lm = models().lm
    started = time.perf_counter()
    ids = torch.tensor([prompt], device=lm.device)
    lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
    )
    return (time.perf_counter() - started) * 1000


def _medians(rows: Sequence[Row]) -> Row:
    columns = zip(*(asdict(row).values() for row in rows), strict=True)
    return Row(*(median(column) for column in columns))
