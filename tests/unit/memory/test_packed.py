"""Packed weights and their compiled product, held to both written out element by element."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from app.memory.decode.flat import Flat
from app.memory.decode.native import Native
from app.memory.decode.packed import GROUP, Bits, Packed, pack_weights
from app.memory.model.load import LanguageModel
from tests.unit.memory.families import made, of_threads

BOTH: tuple[Bits, ...] = ("int8", "int4")


def dense(packed: Packed) -> Tensor:
    """What each element stands for, by the layout that `Packed` describes, in float64."""
    rows, cols = packed.shape
    found = torch.empty(rows, cols, dtype=torch.float64)
    for row in range(rows):
        for col in range(cols):
            if packed.bits == 8:
                code, low, step = int(packed.values[row, col]), 0.0, float(packed.scales[row])
            else:
                group, place = divmod(col, GROUP)
                byte = int(packed.values[row, group * GROUP // 2 + place % (GROUP // 2)])
                code = byte % 16 if place < GROUP // 2 else byte // 16
                low, step = packed.scales[row, group].tolist()
            found[row, col] = low + step * code
    return found


def drawn(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Weights whose groups lie at different heights and are of different width."""
    random = torch.Generator().manual_seed(seed)
    groups = torch.randn(rows, -(-cols // GROUP), GROUP, generator=random)
    spread = 1 + 3 * torch.rand(*groups.shape[:2], 1, generator=random)
    middle = torch.randn(*groups.shape[:2], 1, generator=random)
    return (groups * spread + middle).flatten(1)[:, :cols]


def on_a_grid(rows: int, cols: int, bits: Bits) -> Tensor:
    """Weights that packing keeps as they are, and with which sums of whole numbers are exact."""
    random = torch.Generator().manual_seed(rows * cols)
    if bits == "int8":
        codes = torch.randint(-127, 128, (rows, cols), generator=random)
        codes[torch.arange(rows), torch.randint(0, cols, (rows,), generator=random)] = 127
        return codes * 2.0 ** torch.randint(-2, 3, (rows, 1), generator=random)
    shape = (rows, cols // GROUP, 1)
    codes = torch.randint(0, 16, (rows, cols // GROUP, GROUP), generator=random)
    ends = torch.rand(codes.shape, generator=random).topk(2, dim=-1).indices
    codes.scatter_(-1, ends, torch.tensor([0, 15]).expand(*shape[:2], 2))
    low = torch.randint(-40, 10, shape, generator=random)
    return (low + codes * 2.0 ** torch.randint(-2, 3, shape, generator=random)).flatten(1)


def native(weight: Tensor, bias: Tensor | None, bits: Bits, folder: Path) -> Native:
    """A model whose vocabulary head these weights are."""
    rows, cols = weight.shape
    model = made(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=cols,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=8,
            pad_token_id=None,
        )
    )
    model.lm_head = nn.Linear(cols, rows, bias=bias is not None)
    model.lm_head.weight.data = weight
    if bias is not None:
        model.lm_head.bias.data = bias
    return Native(Flat(LanguageModel(model, tokenizer=None)), bits, folder)


@pytest.mark.parametrize(
    ("bits", "cols"),
    [*(("int8", n) for n in (16, 32, 48, 80, 176)), *(("int4", n) for n in (32, 64, 96, 224))],
)
@pytest.mark.parametrize(("rows", "biased"), [(1, True), (13, False), (64, True)])
def test_a_product_is_exactly_that_of_the_weights(
    bits: Bits, rows: int, cols: int, biased: bool, folder: Path
) -> None:
    """Whole numbers, whose sums are exact in any order: for any number of inputs and threads."""
    weight = on_a_grid(rows, cols, bits)
    random = torch.Generator().manual_seed(1)
    bias = torch.randint(-500, 500, (rows,), generator=random).float() if biased else None
    head = native(weight, bias, bits, folder)
    assert head.matrices[-1].bits == int(bits[-1])
    x = torch.randint(-8, 9, (21, cols), generator=random).float()
    expected = x @ weight.T + (0 if bias is None else bias)
    for threads, numbers in ((1, (*range(1, 10), 16, 21)), (2, (1, 21)), (5, (3,))):
        with of_threads(threads):
            for inputs in numbers:
                assert torch.equal(head.head(x[:inputs]), expected[:inputs]), (inputs, threads)


@pytest.mark.parametrize("bits", BOTH)
def test_a_product_takes_weights_apart_as_their_layout_says(bits: Bits, folder: Path) -> None:
    weight = drawn(24, 160)
    head = native(weight, None, bits, folder)
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ dense(head.matrices[-1]).T
    assert (head.head(x) - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("bits", BOTH)
def test_what_is_packed_is_what_its_layout_says(bits: Bits) -> None:
    packed = pack_weights(drawn(6, 96), bits)
    assert packed.shape == (6, 96)
    assert torch.equal(packed.dense(), dense(packed).float())


def test_eight_bits_take_the_nearest_of_a_rows_255_steps() -> None:
    weight = drawn(24, 96)
    packed = pack_weights(weight, "int8")
    assert packed.values.abs().amax(dim=1).tolist() == [127] * 24
    assert ((dense(packed) - weight).abs() <= packed.scales[:, None] * 0.5001).all()


def test_four_bits_take_the_nearest_of_a_groups_16_steps() -> None:
    """Lowest value and step are bfloat16: the ends may lie a little beyond the grid."""
    weight = drawn(24, 96)
    packed = pack_weights(weight, "int4")
    groups = weight.view(24, 3, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    exact = torch.stack([low, (high - low) / 15], dim=-1)
    torch.testing.assert_close(packed.scales.float(), exact, rtol=2**-8, atol=0)
    beyond = low.abs() * 2**-8 + (high - low) * 2**-8
    away = (dense(packed).view_as(groups) - groups).abs()
    assert (away <= (packed.scales[..., 1].float() / 2 + beyond)[..., None]).all()
    within = (dense(packed) - weight).abs().view_as(groups).sort(dim=-1).values[..., :-4]
    assert (within <= packed.scales[..., 1:].float() * 0.5001).all()


def test_four_bits_take_the_end_of_the_grid_for_what_lies_beyond_it() -> None:
    """Far from 0 the lowest value is rounded by more than a step."""
    weight = 100 + torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    packed = pack_weights(weight, "int4")
    low, step = packed.scales.float()[..., None].unbind(-2)
    grid = low + step * torch.arange(16)
    away = (weight.view(8, 2, GROUP, 1) - grid[:, :, None]).abs()
    assert torch.equal((packed.dense() - weight).abs().view(8, 2, GROUP), away.amin(-1))


@pytest.mark.parametrize("bits", BOTH)
def test_weights_on_a_grid_come_back_as_they_were(bits: Bits) -> None:
    weight = on_a_grid(24, 96, bits)
    assert torch.equal(pack_weights(weight, bits).dense(), weight)


def test_auto_finds_a_grid_of_sixteen() -> None:
    assert pack_weights(on_a_grid(24, 64, "int4"), "auto").bits == 4
    assert pack_weights(on_a_grid(24, 64, "int8"), "auto").bits == 8


@pytest.mark.parametrize(("bits", "width"), [("auto", 64), ("auto", 48), ("int4", 48)])
def test_eight_bits_are_kept_where_four_would_spoil_or_do_not_fit(bits: Bits, width: int) -> None:
    packed = pack_weights(drawn(24, width), bits)
    assert (packed.bits, packed.shape) == (8, (24, width))


@pytest.mark.parametrize("bits", BOTH)
def test_a_weight_of_zeros_packs_to_zeros(bits: Bits) -> None:
    assert torch.equal(pack_weights(torch.zeros(8, 64), bits).dense(), torch.zeros(8, 64))


def test_the_weights_that_are_packed_are_left_as_they_are(folder: Path) -> None:
    weight: Any = drawn(8, 64)
    before = weight.clone()
    for bits in BOTH:
        pack_weights(weight, bits)
    assert torch.equal(weight, before)
