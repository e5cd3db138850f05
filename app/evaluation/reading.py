"""One question read from several memories at once, a row of one batch each.

Text in the prompt is such a row too: encoded as one memory, it gives the logits of the prompt
(the first of the two exactness properties). So all that is compared runs through the same code, in
the same batch, and costs little more than one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from app.memory.attention import injected
from app.memory.compose import Memories, compose
from app.memory.kv import KV
from app.memory.model import LanguageModel


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
def read(
    lm: LanguageModel, tail: Sequence[int], rows: Sequence[Sequence[KV]], max_tokens: int
) -> list[Reading]:
    """Continue `tail` greedily behind each row's memories, at most `max_tokens` tokens.

    tail: token ids of question and turn, the same for all rows; a row: everything in front of
    them, the shared prefix included, laid out in sequence.
    """
    memories = compose(rows, lm.rotary)
    cache = DynamicCache()
    with injected(lm.model, memories):
        first = _forward(lm, torch.tensor([list(tail)] * len(rows)), 0, cache, memories, keep=1)
        answers = _greedy(lm, first, len(tail), cache, memories, max_tokens)
        said = answers[0]
        logits = [first]
        if len(said) > 1:
            cache.crop(len(tail) - cache.get_seq_length())
            given = torch.tensor([said[:-1]] * len(rows))
            logits.append(_forward(lm, given, len(tail), cache, memories, keep=len(said) - 1))
    divergences = _divergences(torch.cat(logits, dim=1))
    return [
        Reading(lm.tokenizer.decode(answer, skip_special_tokens=True).strip(), answer, divergence)
        for answer, divergence in zip(answers, divergences, strict=True)
    ]


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
    return kl.mean(dim=-1).clamp_min(0.0).tolist()  # type: ignore[no-any-return]
