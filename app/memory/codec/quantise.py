"""Codecs that need no fitting: numbers -> few bits and back.

Each turns keys and values (layers, kv_heads, entries, head_dim) into named tensors, says which
tensors these are for a shape, and turns them back. Keys are quantised before any rotation to a
position (KVQuant, arXiv 2401.18079).
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from app.memory.codec.blob import Spec

Shape = tuple[int, int, int, int]
_TINY = torch.finfo(torch.float32).tiny
_SIGN_SEED = 20_240_701
_BITS = 4


class _OneByOne:
    """A codec whose memories have nothing in common."""

    def decode(
        self, stored: Sequence[Mapping[str, Tensor]], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        return [
            self.decode_one(one, shape, dtype) for one, shape in zip(stored, shapes, strict=True)
        ]

    def decode_one(
        self, stored: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Int8(_OneByOne):
    """8 bits, symmetric: keys one scale per channel, values one per token (KIVI, 2402.02750)."""

    name = "int8"

    def spec(self, shape: Shape) -> Spec:
        layers, heads, entries, dim = shape
        return {
            "keys": ("I8", shape),
            "key_scale": ("F32", (layers, heads, 1, dim)),
            "values": ("I8", shape),
            "value_scale": ("F32", (layers, heads, entries, 1)),
        }

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        key_steps, key_scale = _symmetric(keys, dim=2)
        value_steps, value_scale = _symmetric(values, dim=3)
        return {
            "keys": key_steps,
            "key_scale": key_scale,
            "values": value_steps,
            "value_scale": value_scale,
        }

    def decode_one(
        self, stored: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return (
            stored["keys"].to(dtype).mul_(stored["key_scale"].to(dtype)),
            stored["values"].to(dtype).mul_(stored["value_scale"].to(dtype)),
        )


class Rotated4(_OneByOne):
    """4 bits of a Gaussian codebook after a fixed random rotation (TurboQuant, 2504.19874).

    The rotation, random signs and a Hadamard transform (QuIP#, 2402.04396), makes every channel
    look like a Gaussian, for which one codebook is best (Max, 1960). Each token keeps its norm;
    keys first lose their mean over the chunk, which is the larger part of them.
    """

    name = "rotated4"

    def spec(self, shape: Shape) -> Spec:
        layers, heads, entries, dim = shape
        packed = (_BITS, layers, heads, entries, math.ceil(dim / 8))
        norm = ("BF16", (layers, heads, entries, 1))
        return {
            "keys": ("U8", packed),
            "key_norm": norm,
            "key_mean": ("BF16", (layers, heads, 1, dim)),
            "values": ("U8", packed),
            "value_norm": norm,
        }

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        mean = (keys.double().mean(dim=2, keepdim=True)).bfloat16()
        key_codes, key_norm = self._codes(keys.double() - mean.double())
        value_codes, value_norm = self._codes(values.double())
        return {
            "keys": key_codes,
            "key_norm": key_norm,
            "key_mean": mean,
            "values": value_codes,
            "value_norm": value_norm,
        }

    def decode_one(
        self, stored: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        levels, back = gaussian_levels().to(dtype), rotation(shape[3]).to(dtype).T
        keys, values = (
            levels[codes_of(stored[f"{name}s"], shape[3]).int()]
            .mul_(stored[f"{name}_norm"].to(dtype))
            .matmul(back)
            for name in ("key", "value")
        )
        return keys.add_(stored["key_mean"].to(dtype)), values

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned = x @ rotation(x.shape[-1]).double()
        norm = turned.square().mean(dim=-1, keepdim=True).sqrt().bfloat16()
        levels = gaussian_levels().double()
        unit = turned / norm.double().clamp_min(_TINY)
        codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        return planes(codes), norm


def planes(codes: Tensor) -> Tensor:
    """Codes (..., n) of 4 bits, uint8 -> their bit planes (4, ..., ceil(n / 8)), uint8.

    Plane i holds bit i of every code; in a byte the lowest bit is the first code.
    """
    short = -codes.shape[-1] % 8
    padded = torch.nn.functional.pad(codes, (0, short))
    wide = padded.view(*codes.shape[:-1], padded.shape[-1] // 8, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return torch.stack(
        [(((wide >> i) & 1) * weights).sum(-1, dtype=torch.uint8) for i in range(_BITS)]
    )


def codes_of(packed: Tensor, n: int) -> Tensor:
    """Bit planes (4, ..., ceil(n / 8)), uint8, as `planes` makes them -> codes (..., n), uint8."""
    shifts = torch.arange(8, dtype=torch.uint8)
    codes = torch.zeros(*packed.shape[1:], 8, dtype=torch.uint8)
    for i, plane in enumerate(packed):
        codes |= ((plane[..., None] >> shifts) & 1) << i
    wide: Tensor = codes.flatten(-2)
    return wide[..., :n]


@lru_cache
def gaussian_levels() -> Tensor:
    """The 16 levels that represent a standard Gaussian with least square error, float32."""
    level = torch.linspace(-3, 3, 2**_BITS, dtype=torch.float64)
    infinity = torch.tensor([torch.inf], dtype=torch.float64)
    for _ in range(2_000):  # Lloyd's iteration in closed form: each level the mean of its cell
        edges = torch.cat([-infinity, (level[1:] + level[:-1]) / 2, infinity])
        density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
        mass = torch.special.ndtr(edges)
        level = (density[:-1] - density[1:]) / (mass[1:] - mass[:-1])
    return level.float()


@lru_cache
def rotation(dim: int) -> Tensor:
    """Random signs, then a Hadamard transform: an orthogonal matrix (dim, dim), float32.

    Where dim is no power of two the transform acts on blocks of the greatest that divides it.
    """
    block = dim & -dim
    hadamard = torch.ones(1, 1)
    while len(hadamard) < block:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    # A linear congruence, not a library's generator: blobs outlive libraries.
    signs, state = [], _SIGN_SEED
    for _ in range(dim):
        state = (1_103_515_245 * state + 12_345) % 2**31
        signs.append(1.0 if state < 2**30 else -1.0)
    whole = torch.kron(torch.eye(dim // block), hadamard / math.sqrt(block))
    return torch.tensor(signs)[:, None] * whole


def _symmetric(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = wide.abs().amax(dim=dim, keepdim=True) / 127.0
    steps = (wide / scale.clamp_min(_TINY)).round()
    return steps.clamp(-127, 127).to(torch.int8), scale
