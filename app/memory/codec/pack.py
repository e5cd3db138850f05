"""Memories <-> blobs: what stands around the tensors that a codec makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from app.errors import BlobError
from app.memory.codec import blob
from app.memory.codec.blob import Spec
from app.memory.codec.names import CodecName, chosen
from app.memory.codec.quantise import Int8, Rotated4, Shape
from app.memory.codec.transform import Codebook, Transform
from app.memory.kv import ABSENT, KV

_LOWEST = -60_000.0
"""Below this a float16 log-bias stands for an entry that is not there."""
_MOST = 65_536
"""Layers, heads, entries, channels and tokens of one memory."""


class Codec(Protocol):
    """Keys and values (layers, kv_heads, entries, head_dim) <-> named tensors."""

    @property
    def name(self) -> str:
        """As the profile and the blob's header record it."""

    def spec(self, shape: Shape) -> Spec:
        """The tensors that a memory of this shape has. Raises BlobError when it can have none."""

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Tensors as `spec` names them; the input is finite and on the CPU."""

    def decode(
        self, stored: Sequence[Mapping[str, Tensor]], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of some memories again, as good as the codec can."""


SIMPLE: dict[str, Codec] = {codec.name: codec for codec in (Int8(), Rotated4())}
"""The codecs that need no codebook."""


def codec_for(name: str, model: str, folder: Path, native: Path | None = None) -> Codec:
    """The codec that a setting names; arguments and what is raised as in `names.chosen`.

    native: where this machine keeps what it compiled for itself, as `Transform` takes it.
    """
    return load_codec(chosen(name, model, folder), native)


def load_codec(name: CodecName, native: Path | None = None) -> Codec:
    """The codec of a name. Raises ProfileError for a codebook that cannot be read.

    native: where this machine keeps what it compiled for itself, as `Transform` takes it.
    """
    if name.codebook is None:
        return SIMPLE[name.name]
    return Transform(Codebook.load(name.codebook), native)


def pack(kv: KV, profile: str, codec: Codec = SIMPLE["int8"]) -> bytes:
    """Quantise and serialise, marked with the encoder profile's id.

    Layers in which every entry is absent take no room.
    Raises BlobError when a key, a value or a bias is not a number, or the codec cannot hold it.
    """
    keys, values = kv.keys.detach().cpu(), kv.values.detach().cpu()
    if not (_finite(keys) and _finite(values)):
        raise BlobError("a memory with infinite or undefined numbers cannot be packed")
    layers, heads, entries, dim = keys.shape
    header: dict[str, Any] = {
        "codec": codec.name,
        "profile": profile,
        "shape": [layers, heads, entries, dim],
        "length": kv.length,
    }
    more = {}
    if kv.bias is not None:
        bias = kv.bias.detach().cpu().float()
        if bias.isnan().any() or (bias > -_LOWEST).any():
            raise BlobError("a memory with an undefined or infinite log-bias cannot be packed")
        kept = (bias > _LOWEST).flatten(1).any(1).nonzero()[:, 0]
        header["layers"] = kept.tolist()
        keys, values = keys[kept], values[kept]
        more["bias"] = bias[kept].clamp_min(2 * _LOWEST).half()
    if kv.offsets is not None:
        offsets = kv.offsets.detach().cpu()
        more["offsets"] = (offsets if kv.bias is None else offsets[kept]).to(torch.int32)
    codec.spec((keys.shape[0], heads, entries, dim))
    coded = codec.encode(keys, values) if keys.numel() else {}
    return blob.write({**coded, **more}, header)


def unpack(
    payload: bytes, profile: str, codec: Codec = SIMPLE["int8"], dtype: torch.dtype = torch.float32
) -> KV:
    """The KV of a packed payload, in `dtype`. Raises BlobError as `check` does."""
    return decode([check(payload, profile, codec)], codec, dtype)[0]


@dataclass(frozen=True)
class Checked:
    """A payload whose tensors are there and as they should be, not decoded yet.

    shape: of the memory; layers: those that have tensors, None for all; length: as KV's.
    """

    tensors: Mapping[str, Tensor]
    shape: Shape
    layers: list[int] | None
    length: int

    @property
    def stored(self) -> Shape:
        """Of what the codec made."""
        return self.shape if self.layers is None else (len(self.layers), *self.shape[1:])


def check(payload: bytes, profile: str, codec: Codec = SIMPLE["int8"]) -> Checked:
    """Read a payload without decoding it.

    Raises BlobError when the payload is damaged or truncated, of another version or codec, or
    encoded under another profile than `profile`.
    """
    found = blob.read(payload)
    header = found.header
    shape, layers, length = _described(header)
    if header.get("codec") != codec.name:
        raise BlobError(
            f"memory blob is of codec {header.get('codec')}, the reader has {codec.name}:"
            " set MEMBANK_CODEC as it was when the bank was made, or encode the bank again"
        )
    if header.get("profile") != profile:
        raise BlobError(
            f"memory blob was encoded under profile {header.get('profile')}, the reader has"
            f" {profile}: read it with the model that encoded it, or encode the bank again"
        )
    stored = Checked({}, shape, layers, length).stored
    parts = (stored[0], *shape[1:3])
    expected = dict(codec.spec(stored)) if 0 not in stored else {}
    if layers is not None:
        expected["bias"] = ("F16", parts)
    if "offsets" in found.found:
        expected["offsets"] = ("I32", parts)
    tensors = found.tensors(expected)
    offsets = tensors.get("offsets")
    if length != shape[2] if offsets is None else _astray(offsets, length):
        raise BlobError("memory blob's length does not fit its entries; encode it again")
    return Checked(tensors, shape, layers, length)


def decode(
    memories: Sequence[Checked], codec: Codec = SIMPLE["int8"], dtype: torch.dtype = torch.float32
) -> list[KV]:
    """The KV of each, in `dtype`. Together they take less time than one by one."""
    there = [one for one in memories if 0 not in one.stored]
    pairs = iter(codec.decode([one.tensors for one in there], [o.stored for o in there], dtype))
    return [
        _whole(one, *(next(pairs) if 0 not in one.stored else _nothing(one.stored, dtype)))
        for one in memories
    ]


def _nothing(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


def _whole(memory: Checked, keys: Tensor, values: Tensor) -> KV:
    shape, layers, length = memory.shape, memory.layers, memory.length
    offsets = memory.tensors.get("offsets")
    if layers is None:
        return KV(keys, values, None, offsets, length)
    bias = memory.tensors["bias"].float()
    bias = bias.masked_fill(bias <= _LOWEST, ABSENT)
    if len(layers) == shape[0]:
        return KV(keys, values, bias, offsets, length)
    index = torch.tensor(layers, dtype=torch.long)
    return KV(
        keys.new_zeros(shape).index_copy_(0, index, keys),
        values.new_zeros(shape).index_copy_(0, index, values),
        torch.full(shape[:3], ABSENT).index_copy_(0, index, bias),
        None if offsets is None else offsets.new_zeros(shape[:3]).index_copy_(0, index, offsets),
        length,
    )


def _finite(x: Tensor) -> bool:
    # What is not a number makes the sum none either, in a fifth of the time.
    return bool(x.sum(dtype=torch.float64).isfinite())


def _astray(offsets: Tensor, length: int) -> bool:
    return offsets.numel() > 0 and not 0 <= int(offsets.min()) <= int(offsets.max()) < length


def _described(header: Any) -> tuple[Shape, list[int] | None, int]:
    """Shape, kept layers and length of a header whose bytes are right but may still lie."""
    try:
        layers, heads, entries, dim = (_whole_number(n) for n in header["shape"])
        kept = None
        if "layers" in header:
            kept = [_whole_number(n) for n in header["layers"]]
            # Layers without entries are made again as zeros: no more of them than models have.
            if kept != sorted(set(kept)) or not kept or kept[-1] >= layers or layers > 1024:
                raise ValueError("layers out of range")
        if header["version"] == 1:
            if header["codec"] != "int8" or "length" in header or kept is not None:
                raise ValueError("not of version 1")
            return (layers, heads, entries, dim), None, entries
        length = _whole_number(header["length"])
    except (KeyError, TypeError, ValueError) as error:
        raise BlobError("memory blob has a header that cannot be read; encode it again") from error
    return (layers, heads, entries, dim), kept, length


def _whole_number(n: Any) -> int:
    if type(n) is not int or not 0 <= n <= _MOST:
        raise ValueError(f"{n!r} is no size")
    return n
