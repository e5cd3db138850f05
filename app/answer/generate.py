"""Tokens out of the model: greedy, with memories or without, timed."""

import contextlib
import time
from dataclasses import dataclass

import torch
from transformers.generation.streamers import BaseStreamer

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


class _Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when the first token came. The prompt is put first, then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate(
    lm: LanguageModel, prompt: list[int], max_tokens: int, memories: Memories | None = None
) -> Generation:
    """Continue `prompt` greedily, reading `memories` in every layer if there are any."""
    ids = torch.tensor([prompt], device=lm.device)
    clock = _Clock()
    options = {} if memories is None else {"position_ids": memories.positions(len(prompt))}
    reading = contextlib.nullcontext() if memories is None else injected(lm.model, memories)
    started = time.perf_counter()
    with reading:
        output = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
            pad_token_id=lm.tokenizer.pad_token_id or lm.tokenizer.eos_token_id,
            **options,
        )
    tokens = output[0, len(prompt) :].tolist()
    text = lm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    entries = 0 if memories is None else int((memories.bias[0] == 0).sum())
    return Generation(text, tokens, len(prompt), entries, started, clock.times[1])
