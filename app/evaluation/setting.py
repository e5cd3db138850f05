"""Ways to keep memories small, by name: what `membank bench frontier` compares.

A new one is a line in `settings`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from app.errors import UsageError
from app.memory import codec
from app.memory.encode import Encoder
from app.memory.kv import KV

DENSE = "dense"

Apply = Callable[[Sequence[KV], Sequence[Sequence[int]]], tuple[list[KV], int]]
"""Dense memories and their chunks' token ids -> the memories as they are read back, and the bytes
that are stored for them, all overhead included."""


@dataclass(frozen=True)
class Setting:
    """A name, and what it makes of memories."""

    name: str
    apply: Apply


def settings(encoder: Encoder) -> dict[str, Setting]:
    """Every setting of a model by its name, the dense reference first."""
    dtype = encoder.lm.dtype
    known = [
        Setting(DENSE, lambda dense, chunks: (list(dense), sum(kv.nbytes for kv in dense))),
        Setting("bfloat16", partial(_cast, torch.bfloat16)),
        coded("int8", codec.pack, partial(codec.unpack, dtype=dtype)),
    ]
    return {setting.name: setting for setting in known}


def chosen(known: dict[str, Setting], names: Sequence[str]) -> list[Setting]:
    """The settings of these names after the dense one, each once; all of them without names.

    Raises UsageError for a name that is not known.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"no setting is named {name!r}: one of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys([DENSE, *(names or known)])]


def coded(
    name: str, pack: Callable[[KV, str], bytes], unpack: Callable[[bytes, str], KV]
) -> Setting:
    """A setting that packs every memory for a profile's id and reads it back."""

    def apply(dense: Sequence[KV], chunks: Sequence[Sequence[int]]) -> tuple[list[KV], int]:
        payloads = [pack(kv, name) for kv in dense]
        return [unpack(payload, name) for payload in payloads], sum(map(len, payloads))

    return Setting(name, apply)


def _cast(
    dtype: torch.dtype, dense: Sequence[KV], chunks: Sequence[Sequence[int]]
) -> tuple[list[KV], int]:
    """Another dtype without a header: what a cache in it takes."""
    small = [replace(kv, keys=kv.keys.to(dtype), values=kv.values.to(dtype)) for kv in dense]
    size = sum(kv.nbytes for kv in small)
    return [
        replace(kv, keys=kv.keys.to(was.keys.dtype), values=kv.values.to(was.values.dtype))
        for kv, was in zip(small, dense, strict=True)
    ], size
