"""The codecs that need no fitting, over shapes and extremes, against plain formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BlobError
from app.memory.codec.pack import SIMPLE, pack, unpack
from app.memory.codec.quantise import codes_of, gaussian_levels, planes, rotation
from app.memory.kv import ABSENT, KV

PROFILE = "0123456789abcdef0123456789abcdef"


def random_kv(
    layers: int, heads: int, entries: int, dim: int, scale: float, seed: int, shift: float = 0.0
) -> KV:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, heads, entries, dim)
    return KV(*((torch.randn(shape, generator=generator) + shift) * scale for _ in range(2)))


def loss(kv: KV, back: KV) -> float:
    error = (kv.keys - back.keys).square().mean() + (kv.values - back.values).square().mean()
    return float(error / (kv.keys.square().mean() + kv.values.square().mean()))


@settings(max_examples=40)
@given(
    codec=st.sampled_from(sorted(SIMPLE)),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    entries=st.integers(0, 9),
    dim=st.sampled_from([2, 6, 8, 64, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_every_shape_and_type_comes_back(
    codec: str,
    layers: int,
    heads: int,
    entries: int,
    dim: int,
    dtype: torch.dtype,
    scale: float,
    seed: int,
) -> None:
    kv = random_kv(layers, heads, entries, dim, scale, seed)
    kv = KV(kv.keys.to(dtype), kv.values.to(dtype))
    back = unpack(pack(kv, PROFILE, SIMPLE[codec]), PROFILE, SIMPLE[codec], dtype)
    assert back.keys.shape == kv.keys.shape
    assert back.keys.dtype == back.values.dtype == dtype
    assert back.keys.isfinite().all()
    assert back.values.isfinite().all()
    if scale == 0:
        assert back.keys.abs().max() == 0 if entries else True


@pytest.mark.parametrize("codec", sorted(SIMPLE))
def test_huge_and_tiny_numbers_keep_their_direction(codec: str) -> None:
    for scale in (1e-30, 1e30):
        kv = random_kv(1, 2, 16, 64, scale, 3)
        back = unpack(pack(kv, PROFILE, SIMPLE[codec]), PROFILE, SIMPLE[codec])
        for x, y in ((kv.keys, back.keys), (kv.values, back.values)):
            cosine = torch.nn.functional.cosine_similarity(x / scale, y / scale, dim=-1)
            assert cosine.mean() > 0.7


def test_four_bits_lose_what_theory_says_and_eight_lose_less() -> None:
    kv = random_kv(2, 2, 128, 64, 1.0, 5)
    found = {
        name: loss(kv, unpack(pack(kv, PROFILE, codec), PROFILE, codec))
        for name, codec in SIMPLE.items()
    }
    # Distortion of the best scalar quantiser of a Gaussian (Max, 1960, table I).
    assert found["rotated4"] == pytest.approx(0.009497, rel=0.1)
    assert found["int8"] < found["rotated4"] / 50


def test_one_strong_channel_does_not_hurt_the_rotated_codec() -> None:
    kv, codec = random_kv(1, 1, 64, 64, 1.0, 6), SIMPLE["rotated4"]
    kv.values[..., 7] *= 30
    values = unpack(pack(kv, PROFILE, codec), PROFILE, codec).values
    rotated = float((values - kv.values).square().mean() / kv.values.square().mean())
    assert rotated < 2 * 0.009497


@given(n=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_bit_planes_come_back(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (3, n), generator=generator, dtype=torch.uint8)
    packed = planes(codes)
    assert packed.shape == (4, 3, -(-n // 8))
    assert torch.equal(codes_of(packed, n), codes)


@pytest.mark.parametrize("dim", [2, 6, 8, 64, 80, 96, 128])
def test_the_rotation_is_orthogonal(dim: int) -> None:
    q = rotation(dim).double()
    torch.testing.assert_close(q @ q.T, torch.eye(dim).double(), atol=1e-6, rtol=0)


def test_gaussian_levels_are_those_of_the_tables() -> None:
    above = [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]  # Max, 1960, table I
    below = [-level for level in reversed(above)]
    assert gaussian_levels().tolist() == pytest.approx([*below, *above], abs=1e-3)


def compacted(layers: int = 4) -> KV:
    kv = random_kv(layers, 2, 5, 8, 1.0, 9)
    bias = torch.randn(layers, 2, 5)
    bias[0] = bias[3] = ABSENT
    bias[1, 1, 4] = -torch.inf
    offsets = torch.arange(5).expand(layers, 2, 5) * 3
    return KV(kv.keys, kv.values, bias, offsets.contiguous(), 17)


@pytest.mark.parametrize("codec", ["int8", "rotated4"])
def test_compacted_memories_come_back_and_absent_layers_take_no_room(codec: str) -> None:
    kv, chosen = compacted(), SIMPLE[codec]
    payload = pack(kv, PROFILE, chosen)
    back = unpack(payload, PROFILE, chosen)
    assert back.bias is not None
    assert back.offsets is not None
    assert kv.bias is not None
    assert kv.offsets is not None
    assert back.length == 17
    assert (back.bias[[0, 3]] == ABSENT).all()
    assert back.bias[1, 1, 4] == ABSENT
    torch.testing.assert_close(back.bias[2], kv.bias[2], atol=2e-3, rtol=2e-3)
    assert torch.equal(back.offsets[1:3].long(), kv.offsets[1:3])
    torch.testing.assert_close(back.keys[1:3], kv.keys[1:3], atol=0.7, rtol=0)
    dense = pack(KV(kv.keys, kv.values), PROFILE, chosen)
    assert len(payload) < len(dense)


def test_an_undefined_bias_is_refused() -> None:
    kv = compacted()
    assert kv.bias is not None
    for bad in (torch.nan, torch.inf):
        kv.bias[1, 0, 0] = bad
        with pytest.raises(BlobError, match="log-bias"):
            pack(kv, PROFILE)


def test_a_blob_of_another_codec_is_refused_by_name() -> None:
    payload = pack(random_kv(1, 1, 2, 8, 1.0, 3), PROFILE, SIMPLE["rotated4"])
    with pytest.raises(BlobError, match=r"codec rotated4.*int8"):
        unpack(payload, PROFILE)
