"""Memories inside self-attention (Memory3 eq. 4), through transformers' attention interface.

The live tokens keep the cache, the mask and the positions that transformers gives them. Inside
`injected(model, memories)` each layer's attention reads the memories of its request as well, in
one joint softmax:

    softmax([ q K_mem^T / sqrt(d) + b , q K_live^T / sqrt(d) + mask ]) [ V_mem ; V_live ]

The encoder runs the same attention without memories; `watched` lets a scorer see its queries.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from app.memory.compose import Memories
from app.memory.kv import ABSENT
from app.memory.shares import Shares

NAME = "membank"
T = TypeVar("T")


@dataclass(frozen=True)
class Glance:
    """What one layer's heads asked in a forward pass, and how they attended.

    queries: (batch, heads, n, head_dim), rotated and scaled, so that the product with a rotated
    key is a logit; softcap: the bound that the model puts on logits;
    weights: (batch, heads, n, entries), attention to the memories; None where there are none.
    """

    layer: int
    queries: Tensor
    softcap: float | None
    weights: Tensor | None = None


_reading: ContextVar[tuple[Memories, Shares | None] | None] = ContextVar(
    "membank_memories", default=None
)
_ours: WeakKeyDictionary[Any, tuple[str, int]] = WeakKeyDictionary()
"""Models that compute attention in our way now, the way before, and in how many blocks."""
_changing = threading.Lock()
_watching: ContextVar[Callable[[Glance], None] | None] = ContextVar("membank_watch", default=None)


@contextlib.contextmanager
def injected(model: Any, memories: Memories, shares: Shares | None = None) -> Iterator[None]:
    """Let `model` read `memories` in every forward pass inside the block.

    shares: notes how the last token of the first pass attends to them.

    The model is as it was afterwards. Pass `memories.positions(n)` as `position_ids`. Other threads
    may use the same model meanwhile in such a block, or in `without_memories`, not otherwise.
    """
    with _our_attention(model), _set(_reading, (memories, shares)):
        yield


@contextlib.contextmanager
def without_memories(model: Any) -> Iterator[None]:
    """Plain attention, computed as the reading of memories computes it and no slower."""
    with _our_attention(model), _set(_reading, None):
        yield


@contextlib.contextmanager
def watched(watch: Callable[[Glance], None]) -> Iterator[None]:
    """Call `watch` for each layer of the forward passes that the block runs in either way."""
    with _set(_watching, watch):
        yield


@contextlib.contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def _our_attention(model: Any) -> Iterator[None]:
    with _changing:
        before, users = _ours.get(model, (model.config._attn_implementation, 0))
        if not users:
            model.set_attn_implementation(NAME)
        _ours[model] = (before, users + 1)
    try:
        yield
    finally:
        with _changing:
            before, users = _ours.pop(model)
            if users > 1:
                _ours[model] = (before, users - 1)
            else:
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
    memories, noted = _reading.get() or (None, None)
    watch = _watching.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch, heads, n, dim = query.shape
    kv_heads, live = key.shape[1:3]
    weights = None
    if memories is None and softcap is None and s_aux is None:
        out = _fused(query, key, value, attention_mask, scaling)
    else:
        parts = [(key, value, _live(attention_mask, n, live, query))]
        if memories is not None:
            stored = (memories.keys[layer], memories.values[layer])
            parts.insert(0, (*stored, _bias(memories, layer, sliding_window, kwargs)))
        # The query heads that share a key-value head become rows of one matrix product.
        rows = query.reshape(batch, kv_heads, -1, dim) * scaling
        attended = _weights(rows, parts, n, softcap, s_aux)
        read = [w.to(value.dtype) @ v for w, (_, v, _) in zip(attended, parts, strict=True)]
        out = read[0] if len(read) == 1 else read[0] + read[1]
        if memories is not None:
            weights = attended[0].view(batch, heads, n, -1)
            if noted is not None:
                noted.note(layer, weights[:, :, -1])
    if watch is not None:
        watch(Glance(layer, query * scaling, softcap, weights))
    return out.view(batch, heads, n, -1).transpose(1, 2).contiguous(), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    batch, heads, n, dim = query.shape
    kv_heads, live = key.shape[1:3]
    if mask is None:
        return scaled_dot_product_attention(
            query, key, value, is_causal=n > 1, scale=scaling, enable_gqa=heads > kv_heads
        )
    rows = query.reshape(batch, kv_heads, -1, dim)
    over = _additive(mask, query).repeat(1, 1, heads // kv_heads, 1)
    return scaled_dot_product_attention(rows, key, value, over[..., :live], scale=scaling)


def _bias(
    memories: Memories, layer: int, sliding_window: int | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Added to the logits of the memories, (batch, kv_heads or 1, n or 1, entries)."""
    bias = memories.bias_of(layer)
    if sliding_window is None:
        return bias
    far = memories.outside(layer, sliding_window, kwargs["position_ids"]) * ABSENT
    return far if bias is None else bias + far


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


def _live(mask: Tensor | None, n: int, live: int, like: Tensor) -> Tensor | None:
    """What is added to the logits of the live tokens, (batch or 1, 1, n, live)."""
    if mask is not None:
        return _additive(mask, like)[..., :live]
    if n == 1:
        return None
    return _added(
        torch.ones(1, 1, n, live, dtype=torch.bool, device=like.device).tril(), like.dtype
    )


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is True where a token is seen, or additive already, as something to add."""
    return _added(mask, like.dtype) if mask.dtype == torch.bool else mask


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """transformers' mask, made something to add once for all layers; None where it is causal."""
    seen = sdpa_mask(*args, **kwargs)
    if seen is None:
        return None
    return _added(seen[:1] if seen.stride(0) == 0 else seen, dtype)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
