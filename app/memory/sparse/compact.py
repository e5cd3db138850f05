"""Compaction of a chunk's dense KV to fewer entries per head, by parts that form a pipeline.

A pipeline is written as text, as it stands in a profile, with its parts joined by "+":

    all                        every token of every layer
    layers:3-26                memory in these layers only; "layers:0-4,20-29" gives two ranges
    reconstruction:0.5         the half of the tokens with the highest scores, in every head
    reconstruction:0.5:0.1     half of all tokens, shared among heads by score, with each head
                               keeping at least a tenth of its tokens
    match                      log-bias and values fitted so that what is kept reads like the whole
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from app.errors import UsageError
from app.memory.encode import BATCH_TOKENS, Encoder, batches
from app.memory.kv import ABSENT, KV
from app.memory.sparse.score import SCORERS, Batch, Scorer

_NOT_THERE = torch.finfo(torch.float32).min / 2


@dataclass(frozen=True)
class Draft:
    """A batch on its way through the pipeline.

    kept: (layers, batch, kv_heads, entries), the tokens kept, ascending;
    bias: (layers, batch, kv_heads, entries), float32, ABSENT where a head has no such entry;
    values: (layers, batch, kv_heads, entries, head_dim).
    """

    batch: Batch
    kept: Tensor
    bias: Tensor
    values: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Draft":
        """A draft that keeps all tokens."""
        shape = batch.keys.shape[:4]
        kept = torch.arange(shape[3], device=batch.keys.device).expand(shape)
        bias = torch.zeros(shape, device=kept.device)
        bias = bias.masked_fill(~batch.there[:, None], ABSENT)
        return cls(batch, kept, bias, batch.values)

    @property
    def present(self) -> Tensor:
        """(layers, batch, kv_heads, entries), True for entries that exist."""
        return self.bias > _NOT_THERE


class Part(Protocol):
    """A step of the pipeline. Its text form can be read by `Compactor.parse`."""

    def apply(self, draft: Draft) -> Draft: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Layers:
    """Memory in some layers only (Memory3 keeps its first half, section 3.3)."""

    ranges: tuple[tuple[int, int], ...]

    def apply(self, draft: Draft) -> Draft:
        """Raises UsageError when the model has no such layer."""
        count = draft.bias.shape[0]
        if max(last for _, last in self.ranges) >= count:
            raise UsageError(f"compaction {str(self)!r}: the model's layers are 0-{count - 1}")
        absent = torch.ones(count, dtype=torch.bool, device=draft.bias.device)
        for first, last in self.ranges:
            absent[first : last + 1] = False
        bias = draft.bias.masked_fill(absent[:, None, None, None], ABSENT)
        return replace(draft, bias=bias)

    def __str__(self) -> str:
        return "layers:" + ",".join(f"{first}-{last}" for first, last in self.ranges)


@dataclass(frozen=True)
class Keep:
    """Keeps the share of the tokens that a scorer rates highest.

    Without `floor`, each head keeps the same number. With it, heads share the total by score (as in
    AdaKV, Feng et al., 2024, arXiv 2407.11550), and each keeps at least the share `floor`.
    """

    scorer: Scorer
    share: float
    floor: float | None = None

    def apply(self, draft: Draft) -> Draft:
        scores = self.scorer.score(draft.batch).gather(-1, draft.kept)
        scores = scores.masked_fill(~draft.present, -torch.inf)
        count = draft.present.sum(dim=-1, keepdim=True)
        rank = _rank(scores)
        if self.floor is None:
            chosen = rank < _share(self.share, count)
        else:
            first = rank < _share(self.floor, count)
            everywhere = scores.masked_fill(first, torch.inf).transpose(0, 1).flatten(1)
            total = torch.ceil(self.share * count.transpose(0, 1).flatten(1).sum(1, keepdim=True))
            layers, size, *rest = scores.shape
            chosen = (_rank(everywhere) < total).view(size, layers, *rest).transpose(0, 1)
        return _left(draft, chosen & draft.present)

    def __str__(self) -> str:
        floor = "" if self.floor is None else f":{self.floor:g}"
        return f"{self.scorer.name}:{self.share:g}{floor}"


@dataclass(frozen=True)
class Match:
    """Attention Matching (arXiv 2602.16284): makes the entries kept read like the whole memory.

    For reference queries, which repeat the chunk, fits a log-bias by nonnegative least squares, so
    that the entries kept get the attention mass of all entries; then fits values by least squares,
    so that they give the same output. Both remain valid with any other memories and live tokens in
    the same softmax.
    """

    bound: float = 3.0
    """Log-bias stays within +-3, as in the authors' code."""
    steps: int = 60
    ridge: float = 1e-2
    """Pull of the fitted values towards the tokens' own, relative to the mean diagonal."""

    def apply(self, draft: Draft) -> Draft:
        layers = [self._layer(draft, layer) for layer in range(draft.bias.shape[0])]
        bias, values = (torch.stack(parts) for parts in zip(*layers, strict=True))
        return replace(draft, bias=bias, values=values)

    def _layer(self, draft: Draft, layer: int) -> tuple[Tensor, Tensor]:
        batch, present = draft.batch, draft.present[layer]
        bias, values = draft.bias[layer], draft.values[layer]
        if not present.any():
            return bias, values
        seen = batch.repetition
        rows = batch.grouped(seen.queries[layer]).flatten(2, 3).float()
        logits = rows @ batch.turned[layer].float().transpose(-1, -2)
        if seen.softcap is not None:
            logits = (logits / seen.softcap).tanh() * seen.softcap
        logits.masked_fill_(~batch.there[:, None, None], ABSENT)
        whole = logits.softmax(dim=-1)
        target = whole @ batch.values[layer].float()
        group = rows.shape[2] // seen.asked.shape[1]
        asked = seen.asked.repeat(1, group)[:, None, :, None]  # queries of padding do not count
        at = draft.kept[layer][:, :, None].expand(-1, -1, rows.shape[2], -1)
        shares = whole.gather(-1, at) * present[:, :, None] * asked
        fitted = self._mass(shares, asked).log().masked_fill(~present, ABSENT)
        left = logits.gather(-1, at) + fitted[:, :, None]
        read = left.clamp_min(ABSENT).softmax(dim=-1) * present[:, :, None] * asked
        own = values.float()
        gram = read.transpose(-1, -2) @ read
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        count = present.sum(dim=-1, keepdim=True).clamp_min(1)
        pull = self.ridge * diagonal.sum(dim=-1, keepdim=True) / count + 1e-6
        gram = gram + torch.diag_embed(pull.expand_as(diagonal))
        change = torch.linalg.solve(gram, read.transpose(-1, -2) @ (target - read @ own))
        return fitted, (own + change * present[..., None]).to(values.dtype)

    def _mass(self, shares: Tensor, asked: Tensor) -> Tensor:
        """argmin |shares B - 1|^2 within the bounds, (batch, kv_heads, entries).

        Accelerated projected gradient (Nesterov, 1983); all heads at once.
        """
        gram = shares.transpose(-1, -2) @ shares
        goal = (shares * asked).sum(dim=2)
        # The largest row sum bounds the curvature of a matrix without negative entries.
        step = 1.0 / gram.sum(dim=-1).amax(dim=-1, keepdim=True).clamp_min(1e-12)
        lowest, highest = math.exp(-self.bound), math.exp(self.bound)
        best = ahead = torch.ones_like(goal)
        for turn in range(self.steps):
            slope = (gram @ ahead[..., None])[..., 0] - goal
            following = (ahead - step * slope).clamp(lowest, highest)
            ahead = following + turn / (turn + 3) * (following - best)
            best = following
        return best

    def __str__(self) -> str:
        return "match"


@dataclass(frozen=True)
class Compactor:
    """A pipeline of parts, applied in order."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Compactor":
        """Parse a pipeline from its text form, which `str` gives back.

        Raises UsageError naming the part that cannot be read.
        """
        if text == "all":
            return cls()
        return cls(tuple(_part(word) for word in text.split("+")))

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts) or "all"

    @property
    def drops_layers(self) -> bool:
        """Whether some layers have no memory."""
        return any(isinstance(part, Layers) for part in self.parts)

    @torch.no_grad()
    def compact(
        self,
        encoder: Encoder,
        chunks: Sequence[Sequence[int]],
        memories: Sequence[KV],
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[KV]:
        """Compact the dense memories of chunks that `encoder` encoded.

        Chunks of similar length are processed together. A kept entry stays at its token's
        position, and the memory takes up the positions of the whole chunk.
        """
        if not self.parts:
            return list(memories)
        found: list[KV | None] = [None] * len(chunks)
        for indices in batches([len(chunk) for chunk in chunks], batch_tokens):
            draft = Draft.of(
                Batch(encoder, [chunks[i] for i in indices], [memories[i] for i in indices])
            )
            for part in self.parts:
                draft = part.apply(draft)
            for number, index in enumerate(indices):
                found[index] = self._finished(draft, number)
        return [kv for kv in found if kv is not None]

    def _finished(self, draft: Draft, number: int) -> KV:
        present = draft.present[:, number]
        entries = slice(int(present.sum(dim=-1).max()))
        present = present[..., entries]
        kept = draft.kept[:, number, :, entries]
        keys, values = draft.batch.keys[:, number], draft.values[:, number, :, entries]
        keys = keys.gather(2, kept[..., None].expand(*kept.shape, keys.shape[-1]))
        bias = draft.bias[:, number, :, entries].clone()
        length = int(draft.batch.lengths[number])
        in_order = torch.arange(kept.shape[-1], device=kept.device)
        return KV(
            keys * present[..., None],
            values * present[..., None],
            bias if bool(bias.any()) else None,
            None if bool((kept == in_order).all()) else kept * present,
            length,
        )


def _rank(scores: Tensor) -> Tensor:
    """Rank of each number within the last dimension, 0 for the highest."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _share(share: float, count: Tensor) -> Tensor:
    return torch.ceil(share * count - 1e-6)


def _left(draft: Draft, chosen: Tensor) -> Draft:
    """Keep only the chosen entries, moved to the front in their order."""
    entries = chosen.shape[-1]
    index = torch.arange(entries, device=chosen.device).where(chosen, entries)
    index = index.sort(dim=-1).values[..., : int(chosen.sum(dim=-1).max())]
    present, index = index < entries, index.clamp_max(entries - 1)
    wide = index[..., None].expand(*index.shape, draft.values.shape[-1])
    return Draft(
        draft.batch,
        draft.kept.gather(-1, index),
        draft.bias.gather(-1, index).masked_fill(~present, ABSENT),
        draft.values.gather(3, wide),
    )


def _part(word: str) -> Part:
    name, *options = word.split(":")
    try:
        if name == "match" and not options:
            return Match()
        if name == "layers":
            (text,) = options
            return Layers(tuple(_range(part) for part in text.split(",")))
        if name in SCORERS:
            share, *floor = map(float, options)
            if not 0 < share <= 1 or len(floor) > 1 or any(not 0 <= f <= share for f in floor):
                raise ValueError
            return Keep(SCORERS[name], share, *floor)
    except ValueError:
        pass
    raise UsageError(
        f"compaction {word!r} cannot be read: give `all`, or parts joined by `+`, each of them"
        " layers:FIRST-LAST, match, or SCORER:SHARE[:FLOOR] with 0 < SHARE <= 1 and a SCORER of"
        f" {', '.join(SCORERS)}"
    )


def _range(text: str) -> tuple[int, int]:
    first, last = map(int, text.split("-"))
    if not 0 <= first <= last:
        raise ValueError
    return first, last
