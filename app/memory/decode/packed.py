"""Weights in 8 or 4 bits, for products with a single token.

A product with one token takes the time of reading the weights, so half the bytes are half the time.
Activations stay in float: only the weights are rounded.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bits = Literal["auto", "int8", "int4"]
GROUP = 32


@dataclass(frozen=True)
class Packed:
    """A weight matrix (rows, cols), rounded.

    bits 8: values int8 (rows, cols), scales float32 (rows,). bits 4: values uint8 (rows, cols / 2),
    byte j of a group of 32 holds its elements j (low nibble) and j + 16; scales bfloat16
    (rows, cols / 32, 2): lowest value and step of each group.
    """

    bits: int
    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1] * 8 // self.bits

    def dense(self) -> Tensor:
        """What a product with it multiplies by, float32 (rows, cols)."""
        if self.bits == 8:
            return self.values.float() * self.scales[:, None]
        codes = self.values.view(len(self.values), -1, GROUP // 2)
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
        low, step = self.scales.float().unbind(-1)
        return (low[..., None] + step[..., None] * codes).flatten(1)


def pack_weights(weight: Tensor, bits: Bits) -> Packed:
    """Round `weight` (rows, cols). `auto` takes 4 bits where they lose no more than 8 would.

    That is so for weights that come from a 4-bit file, such as the default model's: their grid of
    16 values in each group of 32 is found again. A width that is no multiple of 32 takes 8 bits.
    """
    weight = weight.detach().float().cpu()
    if bits == "int8" or weight.shape[1] % GROUP:
        return _eight(weight)
    four = _four(weight)
    if bits == "int4":
        return four
    eight = _eight(weight)
    return four if _error(four, weight) <= _error(eight, weight) else eight


def _eight(weight: Tensor) -> Packed:
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    return Packed(8, (weight / scales[:, None]).round().to(torch.int8), scales)


def _four(weight: Tensor) -> Packed:
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.aminmax(dim=-1)
    scales = torch.stack([low, (high - low) / 15], dim=-1).bfloat16()
    low, step = scales.float()[..., None].unbind(-2)
    codes = ((groups - low) / step.clamp_min(1e-12)).round().clamp(0, 15).to(torch.uint8)
    half = GROUP // 2
    return Packed(4, (codes[..., :half] | codes[..., half:] << 4).flatten(1), scales)


def _error(packed: Packed, weight: Tensor) -> float:
    return float((packed.dense() - weight).norm())
