"""How a codebook of the transform codec is fitted to a model, on any text.

The text's only part is to show what keys and values look like, and how much the model's output
changes with each of them. The second is measured as KVzip measures importance: while the model
repeats the chunk that it has in memory (arXiv 2505.23416).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from app.errors import ProfileError
from app.memory.attention import injected
from app.memory.codec.transform import WORDS, Codebook, Group, rows_of
from app.memory.compose import compose
from app.memory.encode import Encoder
from app.memory.kv import KV

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
# A piece of 8 bits is best where its components need 8 together; a little over is still right.
_PIECE_BITS = 8.2
_LEAST_BITS = 0.01
# The largest gradients of a few tokens would otherwise be the whole measure.
_CLIP = 0.98
_SHRINK = 0.1
_WIDTH = 1_200
_MEASURED_CHUNKS = 110
_ROUNDS = 8
_WORD_TOKENS = 12_000

Progress = Callable[[float], None]


@dataclass(frozen=True)
class _Basis:
    """A group's transform with all components, their variances and the tokens it was fitted on."""

    mean: Tensor
    variance: Tensor
    analysis: Tensor
    synthesis: Tensor
    tokens: Tensor


def fit(
    encoder: Encoder,
    chunks: Sequence[Sequence[int]],
    repeat: Sequence[int],
    *,
    model: str,
    ratios: Sequence[float],
    progress: Progress = lambda share: None,
) -> list[Codebook]:
    """A codebook for each of `ratios`: times smaller than bfloat16. chunks: token ids.

    repeat: ids that ask the model to repeat the text, which the chunk then follows. model: the
    model's fingerprint, kept in the codebook. Takes minutes; `progress` gets the share done.
    Raises ProfileError when there is too little text.
    """
    tokens = sum(len(chunk) for chunk in chunks)
    if tokens < 20 * WORDS:
        raise ProfileError(
            f"{tokens} tokens are too few to fit a codebook: give at least {20 * WORDS},"
            " better 30,000, of text like that of the bank"
        )
    memories = _encoded(encoder, chunks, progress)
    slopes = _gradients(encoder, chunks[:_MEASURED_CHUNKS], memories, repeat, progress)
    layers, heads, _, dim = memories[0].keys.shape
    per_layer = 2 * heads * dim
    span = max(1, _WIDTH // per_layer) * per_layer
    rows = torch.cat([rows_of(kv.keys, kv.values).half() for kv in memories])
    bases = [
        _basis(rows[:, at : at + span].float(), slopes[:, at : at + span].float(), per_layer // 2)
        for at in range(0, layers * per_layer, span)
    ]
    progress(0.8)
    found = []
    for ratio in ratios:
        pieces = _pieces([b.variance for b in bases], round(2 * layers * per_layer / ratio))
        groups = tuple(_group(b, p) for b, p in zip(bases, pieces, strict=True))
        # As it is read from its file, which rounds it.
        found.append(Codebook.parse(Codebook(model, (layers, heads, dim), groups).payload))
        progress(0.8 + 0.2 * len(found) / len(ratios))
    return found


def _encoded(encoder: Encoder, chunks: Sequence[Sequence[int]], progress: Progress) -> list[KV]:
    found: list[KV] = []
    for kv in encoder.stream(chunks):
        found.append(kv)
        progress(0.3 * len(found) / len(chunks))
    return found


def _gradients(
    encoder: Encoder,
    chunks: Sequence[Sequence[int]],
    memories: Sequence[KV],
    repeat: Sequence[int],
    progress: Progress,
) -> Tensor:
    """Gradients of what the model says with respect to each token's keys and values.

    (tokens, layers * 2 * heads * dim), float16: their second moment is the Fisher information.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, (chunk, kv) in enumerate(zip(chunks, memories, strict=False)):
        keys = kv.keys.detach().float().clone().requires_grad_()
        values = kv.values.detach().float().clone().requires_grad_()
        loss = _said(encoder, KV(keys, values), [*repeat, *chunk], generator)
        slopes = torch.autograd.grad(loss, [keys, values])
        found.append(rows_of(*slopes).half())
        progress(0.3 + 0.4 * (number + 1) / len(chunks))
    return torch.cat(found)


def _said(encoder: Encoder, kv: KV, live: Sequence[int], generator: torch.Generator) -> Tensor:
    """Log-likelihood of tokens drawn from the model, with random signs.

    With the signs the tokens' gradients neither cancel nor add up on average.
    """
    lm = encoder.lm
    typed = KV(kv.keys.to(lm.dtype), kv.values.to(lm.dtype))
    memories = compose([[typed]], lm.rotary, encoder.prefix)
    ids = torch.tensor([list(live)], device=lm.device)
    with injected(lm.model, memories):
        logits = lm.model(input_ids=ids, position_ids=memories.positions(len(live))).logits[0]
    likely = torch.log_softmax(logits.float(), dim=-1)
    drawn = torch.multinomial(likely.detach().exp().cpu(), 1, generator=generator)
    signs = torch.randint(0, 2, (len(live),), generator=generator) * 2 - 1
    said: Tensor = likely.gather(1, drawn.to(lm.device))[:, 0] * signs.to(lm.device)
    return said.sum()


def _basis(tokens: Tensor, slopes: Tensor, part: int) -> _Basis:
    """The transform that makes tokens' components independent in the metric of the slopes.

    `part`: numbers of one layer's keys or values, over which the metric is smoothed.
    """
    clipped = torch.cat([_clipped(s) for s in torch.split(slopes, part, dim=1)], dim=1)
    fisher = (clipped.T @ clipped).double() / len(clipped)
    level = fisher.diagonal().view(-1, part).mean(1).clamp_min(1e-30)
    smooth = torch.diag(level.repeat_interleave(part))
    value, vector = torch.linalg.eigh((1 - _SHRINK) * fisher + _SHRINK * smooth)
    metric = (vector * value.sqrt()) @ vector.T
    inverse = (vector * value.rsqrt()) @ vector.T
    mean = tokens.mean(0)
    weighted = (tokens - mean).double() @ metric
    variance, axes = torch.linalg.eigh(weighted.T @ weighted / len(weighted))
    axes = axes.flip(1)
    analysis, synthesis = (metric @ axes).float(), (axes.T @ inverse).float()
    return _Basis(mean, variance.flip(0).clamp_min(0).float(), analysis, synthesis, tokens)


def _clipped(slopes: Tensor) -> Tensor:
    norm = slopes.norm(dim=1, keepdim=True)
    clipped: Tensor = slopes * (norm.quantile(_CLIP) / norm.clamp_min(1e-30)).clamp_max(1)
    return clipped


def _pieces(variances: Sequence[Tensor], budget: int) -> list[list[int]]:
    """Lengths of each group's pieces, `budget` in all, by reverse water-filling.

    Components below the water level are left out, the others get half the logarithm of what they
    stand above it, and pieces are cut so that each has about 8 bits.
    """
    logs = [v.clamp_min(1e-30).log2() / 2 for v in variances]
    low, high = min(float(x.min()) for x in logs), max(float(x.max()) for x in logs)
    for _ in range(60):
        level = (low + high) / 2
        pieces = sum(len(list(_cut((x - level).clamp_min(0).tolist()))) for x in logs)
        if pieces > budget:
            low = level
        else:
            high = level
    return [list(_cut((x - high).clamp_min(0).tolist())) or [1] for x in logs]


def _cut(bits: Sequence[float]) -> Iterator[int]:
    """Lengths of consecutive pieces of at most about 8 bits; they never get shorter."""
    total = [0.0, *accumulate(bits)]
    at = 0
    while at < len(bits) and bits[at] > _LEAST_BITS:
        limit = total[at] + _PIECE_BITS
        fitting = [n for n in LENGTHS if at + n <= len(bits) and total[at + n] <= limit]
        yield (length := fitting[-1] if fitting else 1)
        at += length


def _group(basis: _Basis, lengths: Sequence[int]) -> Group:
    """Cut the components and find 256 words for every piece."""
    rank = sum(lengths)
    analysis, synthesis = basis.analysis[:, :rank], basis.synthesis[:rank]
    rest = (basis.tokens[:_WORD_TOKENS] - basis.mean) @ analysis
    words = []
    changes = [0, *(i for i, (a, b) in enumerate(pairwise(lengths), 1) if a != b), len(lengths)]
    for start, end in pairwise(changes):
        count, length = end - start, lengths[start]
        piece, rest = rest[:, : count * length], rest[:, count * length :]
        words.append(_words(piece.reshape(-1, count, length).transpose(0, 1)))
    return Group(basis.mean, analysis.contiguous(), synthesis.contiguous(), tuple(words))


def _words(x: Tensor) -> Tensor:
    """Lloyd's algorithm for every piece at once: (pieces, n, length) -> (pieces, 256, length)."""
    count, n, length = x.shape
    generator = torch.Generator().manual_seed(0)
    words = x[:, torch.randperm(n, generator=generator)[:WORDS]].clone()
    for _ in range(_ROUNDS):
        near = torch.stack(
            [(w.square().sum(-1) - 2 * p @ w.T).argmin(-1) for p, w in zip(x, words, strict=True)]
        )
        total = torch.zeros_like(words).scatter_add_(1, near[..., None].expand(-1, -1, length), x)
        size = torch.zeros(count, WORDS).scatter_add_(1, near, torch.ones(count, n))
        words = torch.where(size[..., None] > 0, total / size[..., None].clamp_min(1), words)
    return words
