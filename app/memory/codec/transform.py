"""The fitted codec: one transform over neighbouring layers, then product quantisation.

Keys and values of neighbouring layers are linear pictures of one residual stream, so most of them
can be said once (xKV, arXiv 2503.18893; transform coding of caches: KVTC, arXiv 2511.01815). All
keys and values that a token has in a group of layers are one vector. A linear transform makes its
components independent, the most important first, where importance is the Fisher information of
the model's output and not the plain square error (GuidedQuant, arXiv 2505.07004). The components
are cut into pieces that need about 8 bits each and every piece is replaced by the nearest of 256
(OPQ: Ge et al., 2013). A token is a row of bytes.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from app.errors import BlobError, ModelError, ProfileError
from app.memory.codec.blob import Spec
from app.memory.codec.names import fitted_name, header, metadata
from app.memory.codec.quantise import Shape
from app.memory.model.compiled import library

WORDS = 256
_NUMBERS = torch.arange(WORDS, dtype=torch.int32)


@dataclass(frozen=True)
class Group:
    """The transform of some neighbouring layers, `width` numbers a token, and its codebooks.

    analysis (width, rank) takes a token less its mean to components; synthesis (rank, width) takes
    them back. pieces: lengths of the consecutive pieces of the components, equal ones together;
    words: for each run of equal lengths the codewords (pieces, 256, length).
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor
    words: tuple[Tensor, ...]

    @property
    def codes(self) -> int:
        """Bytes a token."""
        return sum(len(w) for w in self.words)


@dataclass(frozen=True)
class Codebook:
    """All that the codec has learnt about one model. shape: (layers, kv_heads, head_dim)."""

    model: str
    shape: tuple[int, int, int]
    groups: tuple[Group, ...]

    @property
    def codes(self) -> int:
        """Bytes a token."""
        return sum(group.codes for group in self.groups)

    @property
    def ratio(self) -> float:
        """How many times smaller than the same keys and values in bfloat16."""
        layers, heads, dim = self.shape
        return 4 * layers * heads * dim / self.codes

    @cached_property
    def payload(self) -> bytes:
        """The file: analysis and synthesis in 8 bits a number, the rest in float16."""
        tensors: dict[str, Tensor] = {}
        for i, group in enumerate(self.groups):
            tensors[f"{i}.mean"] = group.mean.half()
            tensors[f"{i}.analysis"], tensors[f"{i}.analysis_scale"] = _small(group.analysis.T)
            tensors[f"{i}.synthesis"], tensors[f"{i}.synthesis_scale"] = _small(group.synthesis)
            for j, words in enumerate(group.words):
                tensors[f"{i}.words.{j}"] = words.half()
        about = metadata(self.model, self.shape)
        return serialise({n: t.contiguous() for n, t in tensors.items()}, about)

    @classmethod
    def load(cls, file: Path) -> "Codebook":
        """Raises ProfileError that names the file when it is missing, damaged or too new."""
        try:
            return cls.parse(file.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ProfileError(f"codebook {file} cannot be read: {error}; fit it again") from error

    @classmethod
    def parse(cls, payload: bytes) -> "Codebook":
        """The inverse of `payload`. Raises ValueError, KeyError, TypeError or SafetensorError."""
        about, tensors = header(payload), parse(payload)
        layers, heads, dim = about["shape"]
        count = 1 + max(int(name.split(".")[0]) for name in tensors)
        groups = tuple(_group(tensors, i) for i in range(count))
        found = cls(about["model"], (layers, heads, dim), groups)
        found.__dict__["payload"] = payload  # the file as it is, not as it would be made again
        return found


class Transform:
    """The codec of one codebook."""

    def __init__(self, codebook: Codebook, native: Path | None = None) -> None:
        """`native`: folder of the compiled search for codewords; without it, torch searches."""
        self.codebook, self._native = codebook, native
        self.name = fitted_name(codebook.payload)

    def spec(self, shape: Shape) -> Spec:
        layers, heads, entries, dim = shape
        if (layers, heads, dim) != self.codebook.shape:
            raise BlobError(
                f"a memory of {layers} layers, {heads} heads and {dim} channels does not fit the"
                f" codebook, which is for {self.codebook.shape}: fit a codebook for this model"
            )
        return {"codes": ("U8", (entries, self.codebook.codes))}

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """The transform is done in the type of the keys, which is the model's own."""
        token = rows_of(keys, values)
        encoders = self._encoders(keys.dtype)
        parts = torch.split(token, [len(encoder.mean) for encoder in encoders], dim=1)
        found = [encoder.codes(part) for encoder, part in zip(encoders, parts, strict=True)]
        return {"codes": torch.cat(found, dim=1)}

    def decode(
        self, stored: Sequence[Mapping[str, Tensor]], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        """Tokens are rows, so the memories are one long one; what comes back are views of it."""
        if not stored:
            return []
        layers, heads, dim = self.codebook.shape
        codes = torch.cat([one["codes"] for one in stored])
        out = torch.empty(layers * 2 * heads, len(codes), dim, dtype=dtype)
        first = at = 0
        for group in self._decoders(dtype):
            rows = group.components(codes[:, at : at + group.codes])
            part = out[first : first + len(group.synthesis)]
            torch.baddbmm(group.mean, rows.expand(len(part), -1, -1), group.synthesis, out=part)
            first, at = first + len(part), at + group.codes
        whole = out.view(layers, 2, heads, len(codes), dim)
        parts = torch.split(whole, [shape[2] for shape in shapes], dim=3)
        return [(part[:, 0], part[:, 1]) for part in parts]

    @cache  # noqa: B019 - a codec lives as long as its process
    def _encoders(self, dtype: torch.dtype) -> Sequence["_Encoder"]:
        search = None if self._native is None else _compiled(self._native)
        return [_Encoder.of(group, dtype, search) for group in self.codebook.groups]

    @cache  # noqa: B019
    def _decoders(self, dtype: torch.dtype) -> Sequence["_Decoder"]:
        dim = self.codebook.shape[2]
        return [_Decoder.of(group, dim, dtype) for group in self.codebook.groups]


@dataclass(frozen=True)
class _Encoder:
    """A group as it is encoded, with the analysis in one type.

    words: for each run of equal lengths its codewords (pieces, length, 256) and the squares of
    their lengths (pieces, 1, 256). search: `nearest.c`, which takes the same as `flat`: lengths of
    the pieces, all their words in one row, and half the squares.
    """

    mean: Tensor
    analysis: Tensor
    words: tuple[tuple[Tensor, Tensor], ...]
    search: ctypes.CDLL | None
    flat: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, group: Group, dtype: torch.dtype, search: ctypes.CDLL | None) -> "_Encoder":
        words = tuple((w.transpose(1, 2), w.square().sum(-1)[:, None]) for w in group.words)
        flat = (
            torch.cat([torch.full((len(w),), w.shape[1]) for w, _ in words]),
            torch.cat([w.flatten() for w, _ in words]),
            torch.cat([squares.flatten() for _, squares in words]) / 2,
        )
        return cls(group.mean, group.analysis.to(dtype), words, search, flat)

    def codes(self, x: Tensor) -> Tensor:
        """Tokens (n, width) -> codes (n, codes), uint8."""
        rest = ((x - self.mean).to(self.analysis.dtype) @ self.analysis).float()
        if self.search is not None:
            return self._found(self.search, rest)
        found = []
        for words, squares in self.words:
            count, length, _ = words.shape
            piece, rest = rest[:, : count * length], rest[:, count * length :]
            pieces = piece.reshape(-1, count, length).transpose(0, 1)
            found.append(_nearest(pieces, words, squares))
        return torch.cat(found, dim=1)

    def _found(self, search: ctypes.CDLL, x: Tensor) -> Tensor:
        lengths, words, halves = (part.data_ptr() for part in self.flat)
        codes = torch.empty(len(x), len(self.flat[0]), dtype=torch.uint8)
        of = (x.data_ptr(), codes.shape[1], lengths, words, halves, codes.data_ptr())
        search.nearest(len(x), x.shape[1], *of)
        return codes


@dataclass(frozen=True)
class _Decoder:
    """A group as it is decoded in one type.

    tables: for each run of equal lengths its codewords (pieces * 256, length); firsts: for each
    code the row where its piece's words begin; synthesis (parts, rank, head_dim) and mean
    (parts, 1, head_dim), a part being keys or values of one head.
    """

    tables: tuple[Tensor, ...]
    firsts: Tensor
    synthesis: Tensor
    mean: Tensor

    @classmethod
    def of(cls, group: Group, dim: int, dtype: torch.dtype) -> "_Decoder":
        synthesis = group.synthesis.view(len(group.synthesis), -1, dim).transpose(0, 1)
        return cls(
            tuple(words.flatten(0, 1).to(dtype) for words in group.words),
            torch.cat([torch.arange(len(words)) * WORDS for words in group.words]).int(),
            synthesis.to(dtype).contiguous(),
            group.mean.view(-1, 1, dim).to(dtype),
        )

    @property
    def codes(self) -> int:
        return len(self.firsts)

    def components(self, codes: Tensor) -> Tensor:
        """Codes (n, codes) -> components (n, rank)."""
        rest, found = codes.int() + self.firsts, []
        for table in self.tables:
            count = len(table) // WORDS
            index, rest = rest[:, :count], rest[:, count:]
            found.append(table.index_select(0, index.reshape(-1)).view(len(codes), -1))
        return torch.cat(found, dim=1)


def rows_of(keys: Tensor, values: Tensor) -> Tensor:
    """(layers, kv_heads, n, head_dim) twice -> one row a token, (n, layers * 2 * heads * dim)."""
    both = torch.stack([keys, values], dim=1)
    return both.permute(3, 0, 1, 2, 4).reshape(keys.shape[2], -1)


def _compiled(folder: Path) -> ctypes.CDLL | None:
    """None where it cannot be compiled: torch finds the same, in more time."""
    try:
        found = library(Path(__file__).with_name("nearest.c"), folder)
    except ModelError:
        return None
    found.nearest.argtypes = [c_int64, c_int64, c_void_p, c_int64, *[c_void_p] * 4]
    found.nearest.restype = None
    return found


def _nearest(pieces: Tensor, words: Tensor, squares: Tensor) -> Tensor:
    """Pieces (pieces, n, length) -> the number of the nearest codeword, (n, pieces), uint8.

    A distance gives its last 8 bits to the number of its codeword, so that the least of them tells
    which: argmin takes three times as long. What is lost decides only between distances that are
    equal to 4 digits.
    """
    distance = torch.baddbmm(squares, pieces, words, alpha=-2.0)
    distance += pieces.square().sum(-1, keepdim=True)
    bits = distance.clamp_min_(torch.finfo(torch.float32).tiny).view(torch.int32)
    bits.bitwise_and_(-WORDS).bitwise_or_(_NUMBERS)
    return distance.amin(-1).view(torch.int32).bitwise_and_(WORDS - 1).T.to(torch.uint8)


def _group(tensors: Mapping[str, Tensor], i: int) -> Group:
    words: list[Tensor] = []
    while (found := tensors.get(f"{i}.words.{len(words)}")) is not None:
        words.append(found.float())
    return Group(
        tensors[f"{i}.mean"].float(),
        (tensors[f"{i}.analysis"].float() * tensors[f"{i}.analysis_scale"]).T.contiguous(),
        tensors[f"{i}.synthesis"].float() * tensors[f"{i}.synthesis_scale"],
        tuple(words),
    )


def _small(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return (x / scale).round().to(torch.int8), scale
