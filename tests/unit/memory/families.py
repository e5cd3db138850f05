"""Tiny random models of many families: the method may not depend on one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.memory.attention import injected
from app.memory.compose import Memories
from app.memory.model.load import LanguageModel
from app.memory.shares import Shares

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3.1": ("llama", {"rope_parameters": _LLAMA31}),
    "mistral": ("mistral", {"head_dim": 8, "sliding_window": None}),
    "mistral, sliding window": ("mistral", {"head_dim": 8, "sliding_window": 12}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 12,
            "attn_logit_softcapping": 2.0,  # low enough to matter
        },
    ),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12}),
    "phi3": ("phi3", {}),
    "gpt-neox, partial rotary": ("gpt_neox", {"rotary_pct": 0.5}),
    "olmo2": ("olmo2", {}),
    "phi, partial rotary": ("phi", {}),
    "gpt-oss, attention sinks": (
        "gpt_oss",
        {"head_dim": 8, "sliding_window": 12, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "smollm3, layers without rotary": ("smollm3", {"no_rope_layer_interval": 2}),
}


# What most tests encode and read: a shared prefix, chunks of unequal length, a question.
PREFIX = [3, 4, 5, 6]
CHUNKS = [[10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]
LIVE = [40, 41, 42, 43, 44, 45]


def lm_of(model: Any) -> LanguageModel:
    return LanguageModel(model, tokenizer=None)


def read(
    lm: LanguageModel, memories: Memories, live: list[list[int]], shares: Shares | None = None
) -> Tensor:
    """Logits of the live tokens, (batch, n, vocabulary)."""
    ids = torch.tensor(live)
    with torch.no_grad(), injected(lm.model, memories, shares):
        return lm.model(
            input_ids=ids,
            position_ids=memories.positions(ids.shape[1]),
            past_key_values=DynamicCache(),
        ).logits


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights each time."""
    family, options = FAMILIES[name]
    config = CONFIG_MAPPING[family](**{**SMALL, **options})
    return made(config, dtype)


def made(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # larger than the usual 0.02, so that attention is sharp
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


@torch.no_grad()
def uneven(model: Any) -> Any:
    """The same model with no bias of 0 and no norm's weight of 1, so that each counts."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += torch.randn_like(parameter) * 0.2
    return model


@contextmanager
def of_threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
