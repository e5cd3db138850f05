"""Encoding: tokens per second compared with the bare forward pass, and memory while streaming.

The bare pass is transformers' own (sdpa, no cache, no logits) over the same chunks in the same
batches. The ways take turns, so that a disturbance of the machine affects all alike.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import median

import psutil
import torch

from app.demo.sample import HANDBOOKS
from app.errors import UsageError
from app.ingest.storing import pieces_of
from app.memory.codec.pack import SIMPLE, Codec, check, decode, pack
from app.memory.encode import BATCH_TOKENS, batches, padded
from app.memory.sparse.compact import Compactor
from app.process import console
from app.runtime.identity import count_tokens
from app.runtime.models import Models, models

LOADED = 5
_MIB = 2**20


@dataclass(frozen=True)
class Row:
    """Median tokens per second, and the median over turns of the ratio to the bare pass."""

    tokens_per_second: float
    against_bare: float


@dataclass(frozen=True)
class Streamed:
    """Peak resident memory above the loaded model, in MiB, after a quarter and after all."""

    tokens: int
    peak_mib_of_first_quarter: float
    peak_mib: float
    dense_mib: float
    """Size of all the document's memories together."""


def run(repeats: int, compaction: str, document_tokens: int, as_json: bool) -> None:
    """Measure and print the tables. Needs no database."""
    if repeats < 1 or document_tokens < 1:
        raise UsageError("-n and --document-tokens must be at least 1")
    compactor = Compactor.parse(compaction)
    m = models()
    streamed = _stream(m, document_tokens)
    chunks = _chunks(m, BATCH_TOKENS)
    rows = measure(m, chunks, compactor, repeats)
    tokens = sum(map(len, chunks))
    loaded = loading(m, chunks[:LOADED], repeats)
    if as_json:
        console.print_json(
            {
                "tokens": tokens,
                "chunks": len(chunks),
                "dtype": str(m.lm.dtype),
                "ways": {name: asdict(row) for name, row in rows.items()},
                "document": asdict(streamed),
                "loading_gb_per_second": loaded,
            }
        )
        return
    console.table(
        f"{len(chunks)} chunks, {tokens} tokens, {m.lm.dtype}, medians of {repeats} turns",
        ["way", "tokens per second", "against bare"],
        [[name, row.tokens_per_second, f"{row.against_bare:.2f}x"] for name, row in rows.items()],
    )
    console.table(
        f"A document of {streamed.tokens} tokens, streamed; peak MiB above the loaded model",
        ["in the first quarter", "in all", "all its memories, dense"],
        [[streamed.peak_mib_of_first_quarter, streamed.peak_mib, streamed.dense_mib]],
    )
    console.table(
        f"Loading {LOADED} memories with one core: blobs to tensors in {m.lm.dtype}",
        ["codec", "GB a second"],
        [[name, f"{rate:.2f}"] for name, rate in loaded.items()],
    )


def measure(
    m: Models, chunks: Sequence[list[int]], compactor: Compactor, repeats: int
) -> dict[str, Row]:
    """Time each way in turn, after a warm-up turn."""
    ways: dict[str, Callable[[], object]] = {
        "bare forward": lambda: _bare(m, chunks),
        "encode": lambda: m.encoder.encode(chunks),
        f"encode, pack ({m.codec.name})": lambda: [
            pack(kv, m.profile.id, m.codec) for kv in m.encoder.encode(chunks)
        ],
        f"encode, {compactor}, pack": lambda: [
            pack(kv, m.profile.id, m.codec)
            for kv in compactor.compact(m.encoder, chunks, m.encoder.encode(chunks))
        ],
    }
    turns = [{name: _seconds(m, way) for name, way in ways.items()} for _ in range(repeats + 1)][1:]
    tokens = sum(map(len, chunks))
    return {
        name: Row(
            median(tokens / turn[name] for turn in turns),
            median(turn["bare forward"] / turn[name] for turn in turns),
        )
        for name in ways
    }


@torch.no_grad()
def _bare(m: Models, chunks: Sequence[list[int]]) -> None:
    for batch in batches([len(chunk) for chunk in chunks], BATCH_TOKENS):
        m.lm.decoder(input_ids=padded([chunks[i] for i in batch], m.lm.device), use_cache=False)


def loading(m: Models, chunks: Sequence[list[int]], repeats: int) -> dict[str, float]:
    """Map each codec to the GB of keys and values per second that one core decodes, checksums
    included."""
    dense = m.encoder.encode(chunks)
    size = sum(kv.keys.nbytes + kv.values.nbytes for kv in dense)
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    for codec in {c.name: c for c in (m.codec, SIMPLE["int8"])}.values():
        payloads = [pack(kv, m.profile.id, codec) for kv in dense]

        def load(codec: Codec = codec, payloads: Sequence[bytes] = payloads) -> object:
            return decode([check(p, m.profile.id, codec) for p in payloads], codec, m.lm.dtype)

        seconds = [_seconds(m, load) for _ in range(5 * repeats + 1)][1:]
        found[codec.name] = size / median(seconds) / 1e9
    torch.set_num_threads(threads)
    return found


def _seconds(m: Models, way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    if m.lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _stream(m: Models, tokens: int) -> Streamed:
    process = psutil.Process()
    before = process.memory_info().rss
    kv = m.encoder.prefix
    per_token = kv.nbytes / kv.entries if kv else 0.0
    peaks: list[int] = []
    with _sampled(process) as peak:
        stream, done = m.encoder.stream(_text(m, tokens)), 0
        for memory in stream:
            done += memory.entries
            if not peaks and done >= tokens / 4:
                peaks.append(peak())
        peaks.append(peak())
    first, last = ((one - before) / _MIB for one in (peaks[0], peaks[-1]))
    return Streamed(done, first, last, done * per_token / _MIB)


@contextmanager
def _sampled(process: psutil.Process) -> Iterator[Callable[[], int]]:
    """The highest resident size so far, sampled every 10 ms."""
    seen, done = [process.memory_info().rss], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        thread.join()


def _chunks(m: Models, tokens: int) -> list[list[int]]:
    """Whole chunks of the sample handbooks, at most `tokens` padded tokens in all."""
    found = list(islice(_text(m, 2 * tokens), tokens // m.profile.chunk_tokens))
    return found[: tokens // max(map(len, found))]


def _text(m: Models, tokens: int) -> Iterator[list[int]]:
    """Chunks of the sample handbooks, repeated until there are `tokens` tokens."""
    files = sorted(HANDBOOKS.rglob("*.md"))
    pieces = [
        m.prompt.chunk(piece.text)
        for file in files
        for piece in pieces_of(file.stem, file.read_text(), count_tokens)
    ]
    given = 0
    for piece in cycle(pieces):
        if given >= tokens:
            return
        given += len(piece)
        yield piece
