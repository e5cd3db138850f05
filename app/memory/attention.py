"""Memories inside self-attention (Memory3 eq. 4), through transformers' attention interface.

The live tokens keep the cache, the mask and the positions that transformers gives them. Inside
`injected(model, memories)` each layer's attention reads the memories of its request as well, in
one joint softmax:

    softmax([ q K_mem^T / sqrt(d) + b , q K_live^T / sqrt(d) + mask ]) [ V_mem ; V_live ]

`watched(model)` runs the same attention, with or without memories, and keeps what was asked.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from app.memory.compose import Memories
from app.memory.kv import ABSENT

NAME = "membank"


@dataclass
class Queries:
    """What each layer's heads asked in one forward pass.

    layers: one tensor (batch, heads, n, head_dim) a layer, rotated and scaled, so that their
    product with a rotated key is the logit; softcap: the bound that the model puts on logits.
    """

    layers: list[Tensor] = field(default_factory=list)
    softcap: float | None = None


_reading: ContextVar[Memories | None] = ContextVar("membank_memories", default=None)
_watching: ContextVar[Queries | None] = ContextVar("membank_queries", default=None)


@contextlib.contextmanager
def injected(model: Any, memories: Memories) -> Iterator[None]:
    """Let `model` read `memories` in every forward pass inside the block.

    The model is as it was afterwards. Pass `memories.positions(n)` as `position_ids`. While the
    block is open no other thread may use the same model.
    """
    token = _reading.set(memories)
    try:
        with _our_attention(model):
            yield
    finally:
        _reading.reset(token)


@contextlib.contextmanager
def watched(model: Any) -> Iterator[Queries]:
    """Keep the queries of one forward pass of `model` inside the block."""
    seen = Queries()
    token = _watching.set(seen)
    try:
        with _our_attention(model):
            yield seen
    finally:
        _watching.reset(token)


@contextlib.contextmanager
def _our_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
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
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One layer's attention over its request's memories and the live tokens.

    query (batch, heads, n, head_dim); key, value (batch, kv_heads, live, head_dim);
    attention_mask (batch, 1, n, live), additive or True where a token is seen; None: causal.
    softcap: bound of the logits (Gemma2); s_aux: (heads,), a logit of each head that takes weight
    and gives no value (gpt-oss). Returns (batch, n, heads, head_dim).
    """
    memories, seen = _reading.get(), _watching.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    if seen is not None:
        seen.layers.append(query * scaling)
        seen.softcap = softcap
    batch, heads, n, _ = query.shape
    plain = softcap is None and s_aux is None
    if memories is None and attention_mask is None and plain:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=n > 1, scale=scaling, enable_gqa=heads > key.shape[1]
        )
        return out.transpose(1, 2).contiguous(), None
    mask = _additive(attention_mask, n, key.shape[2], query)
    parts = [(key, value, mask)]
    if memories is not None:
        away = memories.bias_of(layer)
        if sliding_window is not None:
            outside = memories.outside(layer, sliding_window, kwargs["position_ids"])
            away = (0.0 if away is None else away) + outside * ABSENT
        parts.insert(0, (memories.keys[layer], memories.values[layer], away))
    # The query heads that share a key-value head become rows of one matrix product.
    rows = query.reshape(batch, key.shape[1], -1, query.shape[-1])
    if plain and n > 1 and memories is None:
        out = scaled_dot_product_attention(
            rows, key, value, None if mask is None else _over(mask, rows), scale=scaling
        )
    else:
        weights = _weights(rows * scaling, parts, n, softcap, s_aux)
        if memories is not None and n > 1:
            memories.note(weights[0].view(batch, heads, n, -1)[:, :, -1])
        read = [w.to(value.dtype) @ v for w, (_, v, _) in zip(weights, parts, strict=True)]
        out = read[0] if len(read) == 1 else read[0] + read[1]
    return out.view(batch, heads, n, -1).transpose(1, 2).contiguous(), None


def _weights(
    rows: Tensor,
    parts: list[tuple[Tensor, Tensor, Tensor | None]],
    n: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> Sequence[Tensor]:
    """Attention of rows (batch, kv_heads, group * n, head_dim) to each part, in float32.

    The parts are not concatenated, so a generated token costs no copy of the memories.
    """
    logits = []
    for keys, _, added in parts:
        part = (rows @ keys.transpose(-1, -2)).float()
        if softcap is not None:
            part = (part / softcap).tanh() * softcap
        if added is not None:
            grid = part.view(*part.shape[:2], -1, n, part.shape[-1])
            part = (grid + added.unsqueeze(2)).view_as(part)
        logits.append(part)
    sizes = [part.shape[-1] for part in logits]
    if sinks is not None:
        column = sinks.float().view(rows.shape[1], -1, 1).expand(-1, -1, n)
        logits.append(column.reshape(1, rows.shape[1], -1, 1).expand(*rows.shape[:3], 1))
        sizes.append(1)
    weights = torch.cat(logits, dim=-1).softmax(dim=-1)
    return torch.split(weights, sizes, dim=-1)[: len(parts)]


def _additive(mask: Tensor | None, n: int, live: int, like: Tensor) -> Tensor | None:
    """The live tokens' mask as something to add to logits, (batch or 1, 1, n, live)."""
    if mask is None:
        if n == 1:
            return None
        mask = torch.ones(1, 1, n, live, dtype=torch.bool, device=like.device).tril()
    mask = mask[..., :live]
    return _added(mask, like.dtype) if mask.dtype == torch.bool else mask


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _over(mask: Tensor, rows: Tensor) -> Tensor:
    """The mask of n queries repeated for the heads of a group."""
    return mask.repeat(1, 1, rows.shape[2] // mask.shape[2], 1)


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """transformers' mask, made something to add once for all layers; None where it is causal."""
    seen = sdpa_mask(*args, **kwargs)
    return None if seen is None else _added(seen, dtype)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
