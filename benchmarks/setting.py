"""Ways to keep memories small, by name: what `membank bench frontier` compares.

dense                           as they are encoded: the reference
bfloat16                        what a cache takes in that type
int8, rotated4, FILE, ...       a codec as MEMBANK_CODEC names it, a codebook's file too
reconstruction:0.5+match@int8   compacted as `app.memory.sparse.compact` reads it, then one of these
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from app.memory.codec.pack import SIMPLE, Codec, codec_for, pack, unpack
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.sparse.compact import Compactor
from app.memory.sparse.score import SCORERS

DENSE, HALF = "dense", "bfloat16"
DEFAULT = [
    HALF,
    *SIMPLE,
    "auto",
    *(f"{scorer}:0.5@bfloat16" for scorer in SCORERS),
    "reconstruction:0.5:0.2@bfloat16",
    "reconstruction:0.5+match@bfloat16",
    "reconstruction:0.5+match@int8",
]
"""What is measured where nothing else is asked for."""


@dataclass(frozen=True)
class Encoded:
    """Chunks' token ids and their dense memories."""

    chunks: Sequence[Sequence[int]]
    dense: Sequence[KV]


Apply = Callable[[Encoded], tuple[list[KV], int]]
"""To the memories as they are read back, and the bytes that are stored for them, all overhead
included."""


@dataclass(frozen=True)
class Setting:
    """A name, and what it makes of memories."""

    name: str
    apply: Apply


class Settings:
    """The settings of one model."""

    def __init__(self, encoder: Encoder, model: str, codebooks: Path) -> None:
        """`model`: its fingerprint; `codebooks`: where this machine keeps fitted codecs."""
        self.encoder = encoder
        self.model = model
        self.codebooks = codebooks

    def of(self, names: Sequence[str]) -> list[Setting]:
        """The dense setting, then those of `names`, each once.

        Raises UsageError or ProfileError for a compaction or a codec that there is not.
        """
        found = [Setting(DENSE, _dense), *(self._named(name) for name in names)]
        return list({setting.name: setting for setting in found}.values())

    def _named(self, name: str) -> Setting:
        if name == DENSE:
            return Setting(DENSE, _dense)
        pipeline, at, stored = name.rpartition("@")
        codec = None if stored == HALF else codec_for(stored, self.model, self.codebooks)
        compactor = Compactor.parse(pipeline) if at else Compactor()

        def apply(encoded: Encoded) -> tuple[list[KV], int]:
            kept = compactor.compact(self.encoder, encoded.chunks, encoded.dense)
            back = [_halved(kv) if codec is None else _coded(kv, codec) for kv in kept]
            return [kv for kv, _ in back], sum(size for _, size in back)

        # A codec's own name tells two codebooks apart, and a file's does not.
        return Setting(f"{pipeline}{at}{HALF if codec is None else codec.name}", apply)


def _dense(encoded: Encoded) -> tuple[list[KV], int]:
    return list(encoded.dense), sum(kv.nbytes for kv in encoded.dense)


def _coded(kv: KV, codec: Codec) -> tuple[KV, int]:
    """Packed and read back, its tensors where the dense ones are."""
    payload = pack(kv, DENSE, codec)
    return unpack(payload, DENSE, codec, kv.keys.dtype).to(kv.keys.device), len(payload)


def _halved(kv: KV) -> tuple[KV, int]:
    """In bfloat16 and back, without a header: what a cache of that type takes."""
    half = replace(kv, keys=kv.keys.to(torch.bfloat16), values=kv.values.to(torch.bfloat16))
    back = replace(half, keys=half.keys.to(kv.keys.dtype), values=half.values.to(kv.values.dtype))
    return back, half.nbytes
