"""The search for the nearest codeword, compiled and in torch, against every distance in whole
numbers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.memory.codec.transform import WORDS, Codebook, Group, Transform

LENGTHS = [[(3, 1)], [(1, 2), (2, 3)], [(2, 1), (1, 5), (3, 8), (1, 17)]]
"""Of each group: how many pieces, and how many components each of them has."""


@pytest.fixture(params=["compiled", "torch"])
def native(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    return folder if request.param == "compiled" else None


def group_of(lengths: Sequence[tuple[int, int]], drawn: torch.Generator, spare: int) -> Group:
    """Components are the numbers themselves, and `spare` more numbers are left out."""
    words = tuple(
        torch.randint(-9, 10, (pieces, WORDS, length), generator=drawn).float()
        for pieces, length in lengths
    )
    rank = sum(pieces * length for pieces, length in lengths)
    analysis = torch.eye(rank + spare, rank)
    return Group(torch.zeros(rank + spare), analysis, analysis.T.contiguous(), words)


def searched(groups: Sequence[Group], tokens: Tensor, native: Path | None) -> Tensor:
    """Tokens (n, width) -> their codes (n, pieces)."""
    half = tokens.shape[1] // 2
    keys, values = (part.reshape(1, 1, len(tokens), half) for part in tokens.split(half, dim=1))
    codec = Transform(Codebook("m", (1, 1, half), tuple(groups)), native)
    return codec.encode(keys, values)["codes"]


def expected(groups: Sequence[Group], tokens: Tensor) -> Tensor:
    """The first of the words at the least distance, for each piece."""
    rest, found = tokens.double(), []
    for group in groups:
        own, rest = rest[:, : len(group.mean)], rest[:, len(group.mean) :]
        for words in group.words:
            for piece in words.double():
                part, own = own[:, : piece.shape[1]], own[:, piece.shape[1] :]
                away = (part[:, None] - piece[None]).square().sum(-1)
                least = away == away.amin(-1, keepdim=True)
                found.append(least.int().argmax(-1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_each_piece_gets_the_first_of_the_nearest_words(native: Path | None, tokens: int) -> None:
    """Many are equally near in one component, few in seventeen."""
    drawn = torch.Generator().manual_seed(tokens)
    groups = [
        group_of(lengths, drawn, spare) for lengths, spare in zip(LENGTHS, (0, 2, 1), strict=True)
    ]
    width = sum(len(group.mean) for group in groups)
    assert width % 2 == 0
    x = torch.randint(-12, 13, (tokens, width), generator=drawn).float()
    assert torch.equal(searched(groups, x, native).long(), expected(groups, x))


def test_every_word_is_found_where_it_stands(native: Path | None) -> None:
    """Its distance is 0, or what rounding makes of it, which may be less."""
    drawn = torch.Generator().manual_seed(0)
    words = tuple(torch.randn(1, WORDS, length, generator=drawn) for length in (2, 4, 8))
    group = Group(torch.zeros(14), torch.eye(14), torch.eye(14), words)
    numbers = torch.stack([torch.randperm(WORDS, generator=drawn) for _ in words], dim=1)
    x = torch.cat([w[0, numbers[:, i]] for i, w in enumerate(words)], dim=1)
    assert torch.equal(searched([group], x, native).long(), numbers)


def test_distances_that_differ_by_a_thousandth_are_told_apart(native: Path | None) -> None:
    """Far from all words but two, the one farther by so much standing first or last."""
    for near, far in ((0, 255), (255, 0), (17, 16), (63, 64), (128, 127)):
        words = torch.full((1, WORDS, 2), 100.0)
        words[0, near] = torch.tensor([3.0, 4.0])
        words[0, far] = torch.tensor([3.0, 4.0]) * 1.0005
        group = Group(torch.zeros(2), torch.eye(2), torch.eye(2), (words,))
        assert searched([group], torch.zeros(1, 2), native).item() == near
