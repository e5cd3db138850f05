"""Tokens out of the model: greedy, with memories or without, timed.

The loop is our own because transformers' `generate` asks for the last logits in a way that costs
80 ms on this processor, twice what the prefill of a question takes (docs/decisions/0004).
"""

import contextlib
import time
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from app.memory.attention import injected
from app.memory.compose import Memories
from app.memory.model import LanguageModel


@dataclass(frozen=True)
class Generation:
    """An answer's tokens. Times are of time.perf_counter, in seconds."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    memory_entries: int
    started: float
    first_token: float


@torch.inference_mode()
def generate(
    lm: LanguageModel, prompt: list[int], max_tokens: int, memories: Memories | None = None
) -> Generation:
    """Continue `prompt` greedily, reading `memories` in every layer if there are any.

    Ends with the model's end token, which is not part of the text, or after `max_tokens`.
    """
    reading = contextlib.nullcontext() if memories is None else injected(lm.model, memories)
    tokens: list[int] = []
    cache = DynamicCache(config=lm.model.config.get_text_config())
    started = first = time.perf_counter()
    step = prompt
    with reading:
        while len(tokens) < max_tokens:
            before = len(prompt) + len(tokens) - len(step)
            tokens.append(_next(lm, step, before, cache, memories))
            if len(tokens) == 1:
                first = time.perf_counter()
            if tokens[-1] in lm.end_tokens:
                break
            step = tokens[-1:]
    text = lm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    entries = 0 if memories is None else memories.entries(0)
    return Generation(text, tokens, len(prompt), entries, started, first)


def _next(
    lm: LanguageModel, step: list[int], before: int, cache: DynamicCache, memories: Memories | None
) -> int:
    ids = torch.tensor([step], device=lm.device)
    if memories is None:
        places = torch.arange(before, before + len(step), device=lm.device)[None]
    else:
        places = memories.positions(len(step), before)
    logits = lm.model(
        input_ids=ids,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        # As an index, not as the number 1: the slice that a number makes has strides with which
        # bfloat16's vocabulary product takes 78 ms instead of 2 (docs/decisions/0004).
        logits_to_keep=torch.tensor([len(step) - 1], device=lm.device),
    ).logits
    return int(logits[0, -1].argmax())
