"""Perplexity of plain text, alone and with unrelated memories.

Without memories the base model reads, so the adapter changes nothing. The cost of irrelevant
memories is measured against the base model after the same shared prefix.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from app.errors import UsageError
from app.evaluation.memories import MemoryStore
from app.evaluation.metrics import interval
from app.evaluation.questions import read_passages
from app.memory.attention import injected
from app.memory.compose import Memories, compose
from app.memory.model.load import LanguageModel
from app.process import console
from app.runtime.models import adapted, models

_TOKENS = 256


def run(file: Path, n: int, k: int, adapter: str | None, seed: int, as_json: bool) -> None:
    """Read n passages of a corpus file, each after k memories of other passages.

    Raises UsageError when the file holds too few passages.
    """
    passages = list(read_passages(file))
    if len(passages) < n * (k + 1):
        raise UsageError(
            f"{file} holds {len(passages)} passages, but -n {n} -k {k} needs {n * (k + 1)}"
        )
    random.Random(seed).shuffle(passages)
    m = models()
    store = MemoryStore.of(m)
    reader = adapted("memory", adapter)
    found: dict[str, list[float]] = {"alone": [], "base, irrelevant": [], "reader, irrelevant": []}
    with console.progress() as bar:
        task = bar.add_task("reading", total=n, rate="")
        for number in range(n):
            ids = m.prompt.chunk(passages[number].text)[:_TOKENS]
            others = passages[n + number * k : n + (number + 1) * k]
            kvs = [store.load(f"{p.title}\n{p.text}"[:480]) for p in others]
            alone = compose([[]], m.lm.rotary, m.encoder.prefix)
            beside = compose([kvs], m.lm.rotary, m.encoder.prefix)
            gained = beside
            if reader.adapter is not None and k > 1:
                chance = random.Random(f"{seed}:{number}")
                relevances = [[0.1 * chance.random() for _ in kvs]]
                gained = beside.preferring(reader.adapter.gains(relevances))
            found["alone"].append(_nll(m.lm, ids, alone))
            found["base, irrelevant"].append(_nll(m.lm, ids, beside))
            found["reader, irrelevant"].append(_nll(reader.lm, ids, gained))
            bar.advance(task)
    rows: list[list[object]] = []
    value: dict[str, object] = {"n": n, "k": k}
    for name, losses in found.items():
        rise = interval([a - b for a, b in zip(losses, found["alone"], strict=True)], seed)
        low, mean, high = (100 * (math.exp(x) - 1) for x in (rise.low, rise.mean, rise.high))
        perplexity = math.exp(sum(losses) / n)
        value[name] = {"perplexity": perplexity, "rise_percent": [mean, low, high]}
        rows.append([name, f"{perplexity:.2f}", f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}]"])
    if as_json:
        console.print_json(value)
    else:
        console.table(f"{n} passages, {k} memories", ["", "perplexity", "rise"], rows)


@torch.inference_mode()
def _nll(lm: LanguageModel, ids: Sequence[int], memories: Memories) -> float:
    """Negative log-likelihood in nats per token, without the first token."""
    text = torch.tensor([list(ids)], device=lm.device)
    with injected(lm.model, memories):
        logits = lm.model(input_ids=text, position_ids=memories.positions(len(ids))).logits
    return float(cross_entropy(logits[0, :-1].float(), text[0, 1:]))
