"""Removes rotary positions from keys and applies them again, for any transformers model with RoPE.

RoPE (Su et al., 2021, arXiv 2104.09864) rotates a key by angles that grow with its position. A key
without that rotation can stand at any position. The rotation itself is the model's own function, so
half-split, interleaved and partial rotary need no code here. Which layers rotate their keys, and by
which angles, is found by a probe: the same tokens are run at two positions, and a layer's angles
are those whose removal gives the same keys both times.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from app.errors import ModelError

_PROBE_TOKENS, _PROBE_SHIFT = 6, 11
_CACHED = 2**18


class Rotary:
    """The rotary geometry of a model: which layers rotate their keys, and by which angles."""

    def __init__(self, model: Any) -> None:
        """Raises ModelError, with the reason, when the model cannot keep explicit memories."""
        reason = _unfit(model)
        if reason:
            raise ModelError(_refusal(model, reason))
        decoder = model.get_decoder()
        self._embedding: Any = decoder.rotary_emb
        parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        self._partial = parameters.get("partial_rotary_factor", 1.0) < 1.0
        self._apply = _rotation_of(decoder)
        self._by_type = "layer_type" in inspect.signature(self._embedding.forward).parameters
        self._device = model.device
        self._layers = self._probe(model)

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Rotate un-rotated keys to their positions.

        `keys` are (layers, batch, kv_heads, entries, head_dim); `positions` are (batch, entries),
        or (layers, batch, kv_heads, entries) where heads keep different tokens. Returns the keys'
        shape and dtype, in which the rotation is computed as the model computes its own.
        """
        return self._turn(keys, positions, inverse=False)

    def unrotate(self, keys: Tensor | Sequence[Tensor], positions: Tensor) -> Tensor:
        """Invert `rotate`, in float32. `keys` are stacked, or one tensor per layer."""
        return self._turn(keys, positions, inverse=True)

    def _turn(self, keys: Tensor | Sequence[Tensor], positions: Tensor, *, inverse: bool) -> Tensor:
        dtype = torch.float32 if inverse else keys[0].dtype
        angles = partial(self._angles, dtype=dtype, inverse=inverse)
        per_head = positions.ndim == 4
        kinds = {kind for kind in self._layers if kind is not None and not per_head}
        shared = {kind: angles(positions, kind) for kind in kinds}
        turned = keys[0].new_empty(len(keys), *keys[0].shape)
        # A few layers at a time, so that intermediate results stay in the processor's cache (640
        # tokens of SmolLM2 on one core: 7 ms instead of 50).
        for here, kind in self._runs(max(1, _CACHED // max(1, keys[0].numel()))):
            some = keys[here] if isinstance(keys, Tensor) else torch.stack(list(keys[here]))
            if kind is None:
                turned[here] = some
            elif per_head:  # each head is treated as a request with one head
                own = angles(positions[here].flatten(0, 2), kind)
                heads = some.reshape(-1, 1, *some.shape[-2:])
                turned[here] = self._turn_by(heads, *own).view_as(some)
            else:
                turned[here] = self._turn_by(some, *shared[kind])
        return turned

    def _runs(self, most: int) -> Iterator[tuple[slice, str | None]]:
        """Yield runs of at most `most` neighbouring layers with the same kind of rotation."""
        start = 0
        for kind, run in groupby(self._layers):
            end = start + len(list(run))
            for first in range(start, end, most):
                yield slice(first, min(first + most, end)), kind
            start = end

    def _turn_by(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate keys (..., batch, kv_heads, entries, head_dim), in the angles' dtype."""
        keys = keys.to(cos.dtype)
        part = keys[..., : cos.shape[-1]] if self._partial else keys
        # The function also takes queries, for which an empty tensor is passed.
        _, turned = self._apply(part[..., :0, :, :], part, cos, sin)
        rest = keys[..., part.shape[-1] :]
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def _angles(
        self, positions: Tensor, kind: str, dtype: torch.dtype, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        sample = torch.empty(0, dtype=torch.float32, device=self._device)
        arguments = (kind,) if self._by_type else ()
        cos, sin = self._embedding(sample, positions.to(self._device), *arguments)
        if inverse:  # some variants scale cos and sin, so the inverse divides by the scale squared
            norm = cos.square() + sin.square()
            cos, sin = cos / norm, -sin / norm
        return cos.to(dtype), sin.to(dtype)

    @torch.no_grad()
    def _probe(self, model: Any) -> list[str | None]:
        config = model.config.get_text_config()
        ids = torch.arange(_PROBE_TOKENS, device=self._device)[None] % config.vocab_size
        places = [
            torch.arange(_PROBE_TOKENS, device=self._device)[None] + s for s in (0, _PROBE_SHIFT)
        ]
        here, there = (_keys_at(model, ids, place) for place in places)
        types = getattr(config, "layer_types", None) if self._by_type else None
        angles = partial(self._angles, dtype=torch.float32, inverse=True)
        found: list[str | None] = []
        for layer in range(len(here)):
            kind = types[layer] if types else "all"
            first, second = (
                self._turn_by(keys[layer], *angles(place, kind))
                for keys, place in zip((here, there), places, strict=True)
            )
            if _same(first, second, model.dtype):
                found.append(kind)
            elif _same(here[layer], there[layer], model.dtype):
                found.append(None)
            else:
                reason = f"the keys of layer {layer} depend on position in a way other than RoPE"
                raise ModelError(_refusal(model, reason))
        if not any(found):
            raise ModelError(_refusal(model, "no layer rotates its keys by position"))
        return found


def _unfit(model: Any) -> str | None:
    """Why a model of this architecture is not supported, or None if only a probe can tell."""
    config, decoder = model.config.get_text_config(), model.get_decoder()
    attention = getattr(config, "attn_config", None)
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    parts = {name for name, _ in decoder.named_children()}
    reasons = {
        "its attention keeps one latent vector for all heads (MLA) instead of keys and values": (
            getattr(config, "kv_lora_rank", None)
        ),
        "its attention has a penalty for distance (ALiBi) instead of rotary positions": (
            config.model_type == "bloom"
            or getattr(config, "alibi", False)
            or getattr(attention, "alibi", False)
        ),
        "it has recurrent layers, whose state is not a set of keys and values": (
            getattr(model, "_is_stateful", False)
        ),
        f"it has layers of the kind {', '.join(sorted(kinds))}": kinds,
        "it adds absolute positions to its tokens, which cannot be removed from keys": (
            parts & {"wpe", "embed_positions", "position_embeddings"}
        ),
        "it has no rotary position embedding that can be called": "rotary_emb" not in parts,
        "its attention does not go through transformers' attention interface": (
            not getattr(model, "_supports_attention_backend", False)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _rotation_of(decoder: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    source = sys.modules[type(decoder).__module__]
    apply = getattr(source, "apply_rotary_pos_emb", None)
    if apply is None:
        raise ModelError(_refusal(decoder, "its rotation is not a function that can be called"))
    return apply  # type: ignore[no-any-return]


def _keys_at(model: Any, ids: Tensor, positions: Tensor) -> list[Tensor]:
    cache = DynamicCache()
    model.get_decoder()(
        input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
    )
    layers = getattr(cache, "layers", [])
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise ModelError(_refusal(model, "not all of its layers keep keys and values"))
    return [layer.keys for layer in layers]


def _same(first: Tensor, second: Tensor, computed_in: torch.dtype) -> bool:
    # A wrong rotation differs by about the key's own norm; bfloat16 accumulates 5 % over 30 layers.
    difference = (first.float() - second.float()).norm() / first.float().norm().clamp_min(1e-9)
    return bool(difference < (1e-3 if computed_in == torch.float32 else 0.2))


def _refusal(model: Any, reason: str) -> str:
    family = model.config.model_type
    return (
        f"models of the family {family!r} cannot keep explicit memories: {reason};"
        " use a decoder with rotary positions in ordinary attention, such as Llama or Qwen"
    )
