"""Memories inside self-attention (Memory3 eq. 4), through transformers' attention interface.

The live tokens keep the cache, the mask and the positions that transformers gives them. Inside
`injected(model, memories)` each layer's attention reads the memories of its request as well, in
one joint softmax:

    softmax([ q K_mem^T + b , q K_live^T + mask ] / sqrt(d)) [ V_mem ; V_live ]

The two parts are never concatenated, so a generated token costs no copy of the memories.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from app.memory.compose import Memories

NAME = "membank"
_reading: ContextVar[Memories | None] = ContextVar("membank_memories", default=None)


@contextlib.contextmanager
def injected(model: Any, memories: Memories) -> Iterator[None]:
    """Let `model` read `memories` in every forward pass inside the block.

    The model is as it was afterwards. Pass `memories.positions(n)` as `position_ids`. While the
    block is open no other thread may use the same model.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    token = _reading.set(memories)
    try:
        yield
    finally:
        _reading.reset(token)
        model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One layer's attention over its request's memories and the live tokens.

    query (batch, heads, n, head_dim); key, value (batch, kv_heads, live, head_dim);
    attention_mask additive, (batch, 1, n, live). Returns (batch, n, heads, head_dim).
    """
    memories = _reading.get()
    if memories is None:
        raise RuntimeError("attention 'membank' runs only inside app.memory.attention.injected")
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch, heads, n, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    # The query heads that share a key-value head become rows of one matrix product.
    rows = query.reshape(batch, kv_heads, group * n, dim) * scaling
    stored = (rows @ memories.keys[layer].transpose(-1, -2)).float()
    live = (rows @ key.transpose(-1, -2)).float()
    if softcap is not None:
        stored, live = ((x / softcap).tanh() * softcap for x in (stored, live))
    if attention_mask is not None:
        grid = live.view(batch, kv_heads, group, n, -1)
        live = (grid + attention_mask[:, :, None, :, : key.shape[2]]).view_as(live)
    stored = stored + memories.bias[:, None, None, :]
    if sliding_window is not None:
        stored = stored + memories.outside(sliding_window, kwargs["position_ids"]).repeat(
            1, 1, group, 1
        )
    weights = torch.cat([stored, live], dim=-1).softmax(dim=-1)
    if n > 1:
        memories.note(weights.view(batch, heads, n, -1)[:, :, -1, : stored.shape[-1]])
    weights = weights.to(value.dtype)
    entries = stored.shape[-1]
    out = weights[..., :entries] @ memories.values[layer] + weights[..., entries:] @ value
    return out.view(batch, heads, n, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
