"""Scorers, which rate how much each token of a chunk matters. Each class implements one idea.

A scorer gives a number to every token of every key-value head in a batch of dense memories, and
`compact` keeps the highest. Queries come from the model itself, through `attention.watched`.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from app.memory.attention import Glance, injected, watched
from app.memory.compose import compose
from app.memory.encode import Encoder, padded
from app.memory.kv import KV

REPEAT = "Repeat the previous context exactly.\n\n"


@dataclass(frozen=True)
class Repetition:
    """The queries of a second pass, which repeats each chunk while reading its memory (KVzip).

    queries: one tensor (batch, heads, n, head_dim) per layer, rotated and scaled;
    asked: (batch, n), False for padding; softcap: the bound of the model's logits;
    strongest: (layers, batch, kv_heads, entries), the most attention any query gave an entry.
    """

    queries: list[Tensor]
    asked: Tensor
    softcap: float | None
    strongest: Tensor


class Batch:
    """The dense memories of some chunks, padded, and the model's queries to them.

    keys, values: (layers, batch, kv_heads, entries, head_dim), keys un-rotated; turned: the keys
    rotated to their positions after the prefix, of the same shape; there: (batch, entries), False
    for padding.
    """

    def __init__(
        self, encoder: Encoder, chunks: Sequence[Sequence[int]], memories: Sequence[KV]
    ) -> None:
        """`memories` are dense, one per chunk."""
        self.encoder, self.chunks = encoder, chunks
        self.lengths = torch.tensor([kv.entries for kv in memories], device=encoder.lm.device)
        width = max(kv.entries for kv in memories)
        self.keys, self.values = (
            torch.stack([pad(x, (0, 0, 0, width - x.shape[2])) for x in part], dim=1)
            for part in ([kv.keys for kv in memories], [kv.values for kv in memories])
        )
        self.there = torch.arange(width, device=self.lengths.device) < self.lengths[:, None]
        self._composed = compose([[kv] for kv in memories], encoder.lm.rotary, encoder.prefix)
        self._first = 0 if encoder.prefix is None else encoder.prefix.entries
        self.turned = self._composed.keys[..., self._first :, :]

    @cached_property
    def own(self) -> Tensor:
        """Un-rotated queries of the chunks' own tokens, (layers, batch, heads, entries, head_dim).

        They are scaled, so that their product with an un-rotated key is a logit.
        """
        queries: list[Tensor] = []
        with watched(lambda glance: queries.append(glance.queries)):
            self.encoder.forward(self.chunks)
        places = self._first + torch.arange(self.there.shape[1], device=self.lengths.device)
        places = places.expand(len(self.chunks), -1)
        return self.encoder.lm.rotary.unrotate(queries, places)

    @cached_property
    def repetition(self) -> Repetition:
        """The queries of the second pass, which is run on first use."""
        lm = self.encoder.lm
        words = lm.tokenizer
        ask = list(words(REPEAT, add_special_tokens=False).input_ids) if words else []
        ids = padded([[*ask, *chunk] for chunk in self.chunks], lm.device)
        queries: list[Tensor] = []
        strongest: list[Tensor] = []
        softcaps: list[float | None] = []
        asked = self.there[:, None, :, None]

        def see(glance: Glance) -> None:
            assert glance.weights is not None  # noqa: S101
            weights = glance.weights[:, :, len(ask) :, self._first :] * asked
            strongest.append(self.grouped(weights.amax(dim=2, keepdim=True)).amax(dim=(2, 3)))
            queries.append(glance.queries[:, :, len(ask) :].clone())
            softcaps.append(glance.softcap)

        with torch.no_grad(), watched(see), injected(lm.model, self._composed):
            lm.decoder(
                input_ids=ids, position_ids=self._composed.positions(ids.shape[1]), use_cache=False
            )
        return Repetition(queries, self.there, softcaps[0], torch.stack(strongest))

    def grouped(self, queries: Tensor) -> Tensor:
        """(..., heads, n, head_dim) -> (..., kv_heads, group, n, head_dim)."""
        *front, heads, n, dim = queries.shape
        kv_heads = self.keys.shape[2]
        return queries.reshape(*front, kv_heads, heads // kv_heads, n, dim)


class Scorer(Protocol):
    """Rates how much each token matters to each key-value head."""

    name: str

    def score(self, batch: Batch) -> Tensor:
        """Return float32 scores (layers, batch, kv_heads, entries); those of padding are unused."""
        ...


class ColumnSums:
    """Memory3's own selector (arXiv 2407.01178, section 3.3).

    The attention that a token gets from all tokens of its chunk, without a causal mask and without
    positions: w_j = sum_i softmax_j(q_i k_j / sqrt(d)). The paper does not say how the query heads
    of a group are combined; here it is by their mean.
    """

    name = "column-sums"

    def score(self, batch: Batch) -> Tensor:
        pairs = zip(batch.own, batch.keys, strict=True)
        return torch.stack([self._layer(batch, *pair) for pair in pairs])

    def _layer(self, batch: Batch, queries: Tensor, keys: Tensor) -> Tensor:
        logits = (batch.grouped(queries) @ keys[:, :, None].transpose(-1, -2)).float()
        logits.masked_fill_(~batch.there[:, None, None, None], -torch.inf)
        weights = logits.softmax(dim=-1) * batch.there[:, None, None, :, None]
        return weights.sum(dim=3).mean(dim=2)


class ExpectedAttention:
    """The attention expected from future queries (Devoto et al., 2025, arXiv 2510.00636).

    Queries are assumed to be normally distributed, with the mean and covariance of the chunk's own,
    rotated to the positions that follow. A token's score is softmax(k mu + k Sigma k / 2) times its
    value's norm.
    """

    name = "expected-attention"
    _AHEAD, _STEP = 512, 8

    def score(self, batch: Batch) -> Tensor:
        there = batch.there[:, None, :, None]
        count = batch.lengths[:, None, None]
        queries = batch.own.float() * there
        mean = queries.sum(dim=3) / count
        spread = (queries - mean[..., None, :]) * there
        covariance = spread.transpose(-1, -2) @ spread / count[..., None]
        turn = self._mean_turn(batch)[:, None, None]
        mean = batch.grouped(mean[..., None, :] @ turn)
        covariance = batch.grouped(turn.transpose(-1, -2) @ covariance @ turn)
        places = torch.arange(there.shape[2], device=there.device) - batch.lengths[:, None]
        keys = batch.encoder.lm.rotary.rotate(batch.keys, places).float()[:, :, :, None]
        logits = (keys @ mean.transpose(-1, -2))[..., 0]
        logits = logits + ((keys @ covariance) * keys).sum(-1) / 2
        logits.masked_fill_(~batch.there[:, None, None], -torch.inf)
        norms = batch.values.float().square().sum(dim=-1).sqrt()
        return logits.softmax(dim=-1).mean(dim=3) * norms

    def _mean_turn(self, batch: Batch) -> Tensor:
        """Mean rotation to the positions ahead, (layers, head_dim, head_dim), for row vectors."""
        layers, dim = batch.keys.shape[0], batch.keys.shape[-1]
        ahead = torch.arange(0, self._AHEAD, self._STEP, device=batch.keys.device)
        axes = torch.eye(dim, device=ahead.device).expand(layers, len(ahead), 1, dim, dim)
        turned = batch.encoder.lm.rotary.rotate(axes, ahead[:, None].expand(-1, dim))
        return turned.mean(dim=(1, 2))


class Reconstruction:
    """How much the model needs a token to repeat its chunk (KVzip, Kim et al., 2025, arXiv
    2505.23416): the most attention it gets from any query of a second pass that repeats the chunk.
    """

    name = "reconstruction"

    def score(self, batch: Batch) -> Tensor:
        return batch.repetition.strongest


class Random:
    """Random scores, the baseline that every idea has to beat. Equal chunks get equal scores."""

    name = "random"

    def score(self, batch: Batch) -> Tensor:
        layers, size, kv_heads, entries = batch.keys.shape[:4]
        scores = torch.zeros(layers, size, kv_heads, entries)
        for index, chunk in enumerate(batch.chunks):
            seed = torch.Generator().manual_seed(zlib.crc32(repr(list(chunk)).encode()))
            scores[:, index, :, : len(chunk)] = torch.rand(
                layers, kv_heads, len(chunk), generator=seed
            )
        return scores.to(batch.keys.device)


_ALL: tuple[Scorer, ...] = (ColumnSums(), ExpectedAttention(), Reconstruction(), Random())
SCORERS = {scorer.name: scorer for scorer in _ALL}
