"""Answers to a question from different memories, and how far apart their distributions are.

Text in the prompt is covered too: encoded as one memory, it gives the same logits (the first of the
two exactness properties). All answers come from the engine, as users get them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.answer.engine import Engine
from app.answer.question import Question
from app.memory.compose import Memories
from app.memory.decode.decoder import Decoder
from app.memory.decode.flat import Start
from app.memory.decode.generate import Wanted


@dataclass(frozen=True)
class Asking:
    """A question, its token ids up to the start of the answer, and what each of its rows reads.

    A row holds everything before the question, including the shared prefix. The others are compared
    with the first row.
    """

    question: Question
    tail: list[int]
    rows: Sequence[Memories]


@dataclass(frozen=True)
class RowAnswer:
    """A row's greedy answer, and how far its next-token distributions are from the first row's.

    `divergence` is KL(first row || this row) in nats per token: the mean over the tokens of the
    first row's answer, which both rows are given (teacher forcing).
    """

    text: str
    tokens: list[int]
    divergence: float


def read(engine: Engine, askings: Sequence[Asking], max_tokens: int) -> list[list[RowAnswer]]:
    """Answer greedily with at most `max_tokens` tokens; return each question's rows as readings."""
    jobs = [
        [engine(one.question, Wanted(one.tail, max_tokens, row), 0) for row in one.rows]
        for one in askings
    ]
    found = []
    for one, rows in zip(askings, jobs, strict=True):
        texts = ["".join(job) for job in rows]
        said = [job.generation().tokens for job in rows]
        apart = _divergences(rows[0].generator.decoder, one, said[0])
        found.append([RowAnswer(*row) for row in zip(texts, said, apart, strict=True)])
    return found


@torch.inference_mode()
def _divergences(decoder: Decoder, asking: Asking, said: Sequence[int]) -> list[float]:
    """Of each row, where all are given what the first one said."""
    readings = decoder.read([Start(asking.tail, len(said), row) for row in asking.rows])
    total = torch.zeros(len(readings))
    for number, token in enumerate(said):
        logs = torch.stack([reading.logits for reading in readings]).log_softmax(dim=-1)
        total += (logs[0].exp() * (logs[0] - logs)).sum(dim=-1).cpu()
        if number < len(said) - 1:
            decoder.feed(readings, [token] * len(readings))
    return (total / len(said)).clamp_min(0.0).tolist()
