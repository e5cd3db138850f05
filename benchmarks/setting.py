"""Ways to keep memories small, by name, which `membank bench frontier` compares.

dense                           as encoded: the reference
bfloat16                        as a cache of that type holds them
int8, rotated4, FILE            packed by a codec as MEMBANK_CODEC names it, or by a codebook's file
reconstruction:0.5+match@int8   compacted (`app.memory.sparse.compact`), then in one of these ways
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
"""The settings that are measured by default."""


@dataclass(frozen=True)
class Encoded:
    """The token ids of chunks, and their dense memories."""

    chunks: Sequence[Sequence[int]]
    dense: Sequence[KV]


Apply = Callable[[Encoded], tuple[list[KV], int]]
"""Returns memories as read back, and the bytes stored for them, including all overhead."""


@dataclass(frozen=True)
class Setting:
    """A named way to keep memories small."""

    name: str
    apply: Apply


class Settings:
    """The settings for one model."""

    def __init__(self, encoder: Encoder, model: str, codebooks: Path) -> None:
        """`model` is its fingerprint, `codebooks` this machine's folder of fitted codecs."""
        self.encoder = encoder
        self.model = model
        self.codebooks = codebooks

    def of(self, names: Sequence[str]) -> list[Setting]:
        """Return the dense setting, then those of `names`, each once.

        Raises UsageError or ProfileError for a compaction or codec that does not exist.
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
    """Pack memories and read them back, with tensors on the dense ones' device."""
    payload = pack(kv, DENSE, codec)
    return unpack(payload, DENSE, codec, kv.keys.dtype).to(kv.keys.device), len(payload)


def _halved(kv: KV) -> tuple[KV, int]:
    """Convert memories to bfloat16 and back, counting the bytes of a cache without a header."""
    half = replace(kv, keys=kv.keys.to(torch.bfloat16), values=kv.values.to(torch.bfloat16))
    back = replace(half, keys=half.keys.to(kv.keys.dtype), values=half.values.to(kv.values.dtype))
    return back, half.nbytes
