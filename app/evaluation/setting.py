"""Ways to keep memories small, by name: what `membank bench frontier` compares.

dense, bfloat16               as they are encoded; in bfloat16 without a header
int8, rotated3, ...           a codec of app.memory.codec, "auto" or a codebook's path
reconstruction:0.5@int8       a pipeline of app.memory.compact, then a codec
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.errors import UsageError
from app.memory.codec import Codec, codec_for, pack, unpack
from app.memory.compact import Compactor
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.runtime import Models, codebooks

DENSE = "dense"
DEFAULT = (
    DENSE,
    "bfloat16",
    "int8",
    "rotated4",
    "rotated3",
    "rotated2",
    "int2",
    "auto",
    "layers:3-26@rotated3",
    "layers:15-29@rotated3",
    "reconstruction:0.5@rotated4",
    "reconstruction:0.5+match@rotated4",
    "columns:0.5@rotated4",
    "random:0.5@rotated4",
)

Apply = Callable[[Sequence[KV], Sequence[Sequence[int]]], tuple[list[KV], int]]
"""Dense memories and their chunks' token ids -> the memories as they are read back, and the bytes
that are stored for them, all overhead included."""


@dataclass(frozen=True)
class Setting:
    """A name, and what it makes of memories."""

    name: str
    apply: Apply


def chosen(m: Models, names: Sequence[str]) -> list[Setting]:
    """The settings of these names after the dense one, each once; DEFAULT without names.

    Raises UsageError or ProfileError for a name that means nothing here.
    """
    return [_setting(m, name) for name in dict.fromkeys([DENSE, *(names or DEFAULT)])]


def _setting(m: Models, name: str) -> Setting:
    if name == DENSE:
        return Setting(name, lambda dense, chunks: (list(dense), sum(kv.nbytes for kv in dense)))
    if name == "bfloat16":
        return Setting(name, _cast)
    pipeline, _, codec = name.rpartition("@")
    try:
        parts = Compactor.parse(pipeline or "all")
        return Setting(
            name, _packed(m.encoder, parts, codec_for(codec, m.profile.model, codebooks()))
        )
    except UsageError as error:
        raise UsageError(f"setting {name!r}: {error}") from None


def _packed(encoder: Encoder, parts: Compactor, codec: Codec) -> Apply:
    def apply(dense: Sequence[KV], chunks: Sequence[Sequence[int]]) -> tuple[list[KV], int]:
        small = parts.compact(encoder, chunks, dense)
        payloads = [pack(kv, "0" * 32, codec) for kv in small]
        back = [unpack(payload, "0" * 32, codec, encoder.lm.dtype) for payload in payloads]
        return back, sum(map(len, payloads))

    return apply


def _cast(dense: Sequence[KV], chunks: Sequence[Sequence[int]]) -> tuple[list[KV], int]:
    small = [replace(kv, keys=kv.keys.bfloat16(), values=kv.values.bfloat16()) for kv in dense]
    wide = [
        replace(kv, keys=kv.keys.to(was.keys.dtype), values=kv.values.to(was.values.dtype))
        for kv, was in zip(small, dense, strict=True)
    ]
    return wide, sum(kv.nbytes for kv in small)
