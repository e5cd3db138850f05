"""A token of each request in one call: `step.c`, compiled for this processor, packed weights.

Without a C compiler everything runs in torch. The step shares torch's threads: libgomp is loaded
with torch.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.errors import ModelError
from app.memory.decode.flat import Flat, FlatDecoder, FlatReading
from app.memory.decode.packed import Bits, Packed, pack_weights
from app.memory.model.compiled import library
from app.memory.model.product import Product

_BLOCK = 128  # entries that step.c reads as one piece


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "cols", "bits")),
        *((name, c_void_p) for name in ("values", "scales", "bias")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("norm_in", "norm_mid", "norm_q", "norm_k")),
        ("rotary", c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "dim", "inner")),
        *((name, c_float) for name in ("eps", "scaling")),
        ("layer", POINTER(_Layer)),
        ("norm", c_void_p),
        ("head", _Matrix),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values")),
        ("capacity", c_int64),
        ("bias", c_void_p),
        ("biased", c_int64),
    )


class _Request(ctypes.Structure):
    _fields_ = (
        ("cache", _Cache),
        *((name, c_void_p) for name in ("cos", "sin")),
        ("entries", c_int64),
    )


class Native:
    """A flat model's weights, packed, and the compiled step over them."""

    def __init__(self, flat: Flat, bits: Bits, folder: Path) -> None:
        """`folder` keeps the compiled library.

        Raises ModelError that says why it cannot be: no compiler, or a shape that it does not take.
        """
        first = flat.layers[0]
        widths = (2 * flat.dim, flat.embedding.shape[1], first.down.weight.shape[1])
        if flat.device.type != "cpu" or any(width % 16 for width in widths):
            raise ModelError("packed weights run on the CPU, in widths that are multiples of 16")
        self.library = _library(folder)
        self.flat = flat
        self.matrices: list[Packed] = []
        self._kept: list[Any] = []  # tensors whose addresses the structs hold
        layers = (_Layer * len(flat.layers))(
            *(
                _Layer(
                    *(
                        self._matrix(bits, part)
                        for part in (layer.qkv, layer.out, layer.gate_up, layer.down)
                    ),
                    *map(self._floats, (layer.norm_in, layer.norm_mid, layer.norm_q, layer.norm_k)),
                    layer.rotary,
                )
                for layer in flat.layers
            )
        )
        self.model = _Model(
            *(len(flat.layers), flat.embedding.shape[1], flat.heads, flat.kv_heads, flat.dim),
            *(first.down.weight.shape[1], flat.eps, flat.scaling),
            layers,
            self._floats(flat.norm),
            self._matrix(bits, flat.head),
        )

    def step(self, readings: Sequence[FlatReading], tokens: Sequence[int]) -> Tensor:
        """One more token of each request -> (requests, vocabulary), float32."""
        requests = (_Request * len(readings))(*map(self._request, readings))
        x = self.flat.embedding[torch.tensor(tokens)].float().contiguous()
        scratch = self._scratch(readings)
        logits = torch.empty(len(readings), self.flat.head.weight.shape[0])
        self.library.step(
            ctypes.byref(self.model),
            len(readings),
            ctypes.byref(requests),
            *(x.data_ptr(), scratch.data_ptr(), logits.data_ptr()),
        )
        for reading in readings:
            reading.length += 1
        return logits

    def head(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary), float32."""
        hidden = hidden.float().contiguous()
        logits = torch.empty(len(hidden), self.flat.head.weight.shape[0])
        self.library.product(
            ctypes.byref(self.model.head), len(hidden), hidden.data_ptr(), logits.data_ptr()
        )
        return logits

    def _request(self, reading: FlatReading) -> _Request:
        at, bias = reading.length - reading.entries, reading.bias
        return _Request(
            _Cache(
                *(reading.keys.data_ptr(), reading.values.data_ptr(), reading.capacity),
                *(None if bias is None else bias.data_ptr(), reading.entries),
            ),
            *(reading.cos[at].data_ptr(), reading.sin[at].data_ptr(), reading.length),
        )

    def _scratch(self, readings: Sequence[FlatReading]) -> Tensor:
        m = self.model
        fixed = 2 * (m.heads + m.kv_heads) * m.dim + m.inner
        blocks = sum(reading.length // _BLOCK + 1 for reading in readings)
        return torch.empty(len(readings) * fixed + m.heads * blocks * (m.dim + 2))

    def _matrix(self, bits: Bits, part: Product) -> _Matrix:
        packed = pack_weights(part.weight, bits)
        self.matrices.append(packed)
        return _Matrix(
            *packed.shape,
            packed.bits,
            packed.values.data_ptr(),
            packed.scales.data_ptr(),
            self._floats(part.bias),
        )

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        return int(self._kept[-1].data_ptr())


class NativeDecoder(FlatDecoder):
    """Prompts are read in torch, further tokens of all requests by one compiled step."""

    def __init__(self, native: Native) -> None:
        super().__init__(native.flat)
        self._native, self.cache = native, torch.bfloat16

    def feed(self, readings: Sequence[FlatReading], tokens: Sequence[int]) -> None:
        for reading in readings:
            reading.settle()
        for reading, logits in zip(readings, self._native.step(readings, tokens), strict=True):
            reading.logits = logits

    def _head(self, hidden: Tensor) -> Tensor:
        return self._native.head(hidden)


def _library(folder: Path) -> ctypes.CDLL:
    found = library(Path(__file__).with_name("step.c"), folder)
    found.step.argtypes = [c_void_p, c_int64, *[c_void_p] * 4]
    found.product.argtypes = [c_void_p, c_int64, *[c_void_p] * 2]
    found.step.restype = found.product.restype = None
    return found
