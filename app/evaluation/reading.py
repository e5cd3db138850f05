"""Questions read from several memories each, all of them rows of one batch.

Text in the prompt is such a row too: encoded as one memory, it gives the logits of the prompt
(the first of the two exactness properties). So all that is compared runs through the same code, in
the same batch. A decoding step of 32 rows takes about three times that of one, on two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.attention import injected
from app.memory.compose import Memories, compose
from app.memory.kv import KV
from app.memory.model.load import LanguageModel


@dataclass(frozen=True)
class Asking:
    """A question's token ids, the model's turn included, and what each of its rows reads.

    A row holds everything in front of the question, the shared prefix included, in sequence. The
    first row is the one that the others are compared with.
    """

    tail: Sequence[int]
    rows: Sequence[Sequence[KV]]


@dataclass(frozen=True)
class Reading:
    """A row's greedy answer, and how far its next-token distributions are from the first row's.

    `divergence` is KL(first row || this row) in nats a token, the mean over the tokens of the
    first row's answer, which both rows are given (teacher forcing).
    """

    text: str
    tokens: list[int]
    divergence: float


@torch.inference_mode()
def answers(
    lm: LanguageModel, tails: Sequence[Sequence[int]], memories: Memories, max_tokens: int
) -> list[str]:
    """Each question's greedy answer from its own memories, the shared prefix among them.

    Raises ValueError for questions of different length: nothing is padded.
    """
    with injected(lm.model, memories):
        _, said = _answered(lm, tails, DynamicCache(), memories, max_tokens)
    return [_text(lm, tokens) for tokens in said]


@torch.inference_mode()
def read(lm: LanguageModel, askings: Sequence[Asking], max_tokens: int) -> list[list[Reading]]:
    """Answer greedily with at most `max_tokens` tokens; the readings of each question's rows.

    Raises ValueError for questions of different length: nothing is padded.
    """
    n = len(askings[0].tail)
    memories = compose([row for asking in askings for row in asking.rows], lm.rotary)
    tails = [asking.tail for asking in askings for _ in asking.rows]
    firsts = [sum(len(a.rows) for a in askings[:i]) for i in range(len(askings))]
    cache = DynamicCache()
    with injected(lm.model, memories):
        first, answers = _answered(lm, tails, cache, memories, max_tokens)
        said = [answers[at] for at in firsts]
        longest = max(map(len, said))
        logits = [first]
        if longest > 1:
            cache.crop(n - cache.get_seq_length())
            padded = [answer + [0] * (longest - len(answer)) for answer in said]
            given = torch.tensor(
                [padded[i][:-1] for i, asking in enumerate(askings) for _ in asking.rows]
            )
            logits.append(_forward(lm, given, n, cache, memories, keep=longest - 1))
    after = torch.cat(logits, dim=1)
    return [
        _readings(lm, answers[at : at + size], after[at : at + size, : len(answers[at])])
        for at, size in zip(firsts, (len(asking.rows) for asking in askings), strict=True)
    ]


def _readings(lm: LanguageModel, answers: list[list[int]], logits: Tensor) -> list[Reading]:
    """One question's rows; logits (rows, tokens of the first answer, vocabulary)."""
    return [
        Reading(_text(lm, answer), answer, divergence)
        for answer, divergence in zip(answers, _divergences(logits), strict=True)
    ]


def _text(lm: LanguageModel, tokens: list[int]) -> str:
    text: str = lm.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()


def _answered(
    lm: LanguageModel,
    tails: Sequence[Sequence[int]],
    cache: DynamicCache,
    memories: Memories,
    max_tokens: int,
) -> tuple[Tensor, list[list[int]]]:
    """Logits of each row's first token, (rows, 1, vocabulary), and its answer's tokens."""
    n = len(tails[0])
    if any(len(tail) != n for tail in tails):
        raise ValueError("questions of different length in one batch")
    ids = torch.tensor([list(tail) for tail in tails])
    first = _forward(lm, ids, 0, cache, memories, keep=1)
    return first, _greedy(lm, first, n, cache, memories, max_tokens)


def _greedy(
    lm: LanguageModel,
    logits: Tensor,
    before: int,
    cache: DynamicCache,
    memories: Memories,
    max_tokens: int,
) -> list[list[int]]:
    """Each row's tokens up to its end token, that included."""
    answers: list[list[int]] = [[] for _ in range(len(logits))]
    ended = [False] * len(logits)
    for step in range(max_tokens):
        chosen = logits[:, -1].argmax(dim=-1)
        for row, token in enumerate(chosen.tolist()):
            if not ended[row]:
                answers[row].append(token)
                ended[row] = token in lm.end_tokens
        if all(ended) or step == max_tokens - 1:
            break
        logits = _forward(lm, chosen[:, None], before + step, cache, memories, keep=1)
    return answers


def _forward(
    lm: LanguageModel, ids: Tensor, before: int, cache: DynamicCache, memories: Memories, keep: int
) -> Tensor:
    """Logits of the last `keep` of the ids, (rows, keep, vocabulary), after `before` live ones."""
    n = ids.shape[1]
    logits: Tensor = lm.model(
        input_ids=ids.to(lm.device),
        position_ids=memories.positions(n, before),
        past_key_values=cache,
        use_cache=True,
        # An index, not a number, for its speed in bfloat16 (docs/decisions/0004).
        logits_to_keep=torch.arange(n - keep, n, device=lm.device),
    ).logits
    return logits


def _divergences(logits: Tensor) -> list[float]:
    """KL of each row to the first, mean over the tokens; logits (rows, tokens, vocabulary)."""
    logs = logits.float().log_softmax(dim=-1)
    reference = logs[0]
    kl = (reference.exp() * (reference - logs)).sum(dim=-1)
    return kl.mean(dim=-1).clamp_min(0.0).tolist()
