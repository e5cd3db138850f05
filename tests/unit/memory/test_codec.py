"""What is packed comes back; whatever is not exactly what was packed is refused."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.errors import BlobError
from app.memory.codec.pack import pack, unpack
from app.memory.kv import KV

PROFILE = "0123456789abcdef0123456789abcdef"


def random_kv(layers: int, heads: int, entries: int, dim: int, scale: float, seed: int) -> KV:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, heads, entries, dim)
    return KV(*(torch.randn(shape, generator=generator) * scale for _ in range(2)))


def error_bound(x: Tensor, dim: int) -> Tensor:
    """Half a step of the scale that covers the largest of each channel or token."""
    return x.abs().amax(dim=dim, keepdim=True) / 127.0 * 0.5001 + 1e-30


@settings(max_examples=60)
@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 3),
    entries=st.integers(1, 20),
    dim=st.sampled_from([2, 8, 64]),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 99),
)
def test_every_number_comes_back_within_half_a_step(
    layers: int, heads: int, entries: int, dim: int, scale: float, seed: int
) -> None:
    kv = random_kv(layers, heads, entries, dim, scale, seed)
    back = unpack(pack(kv, PROFILE), PROFILE)
    assert back.keys.shape == kv.keys.shape
    assert ((back.keys - kv.keys).abs() <= error_bound(kv.keys, 2)).all()
    assert ((back.values - kv.values).abs() <= error_bound(kv.values, 3)).all()


def test_the_payload_is_about_half_of_bfloat16() -> None:
    kv = random_kv(30, 3, 128, 64, 1.0, 0)
    assert len(pack(kv, PROFILE)) < 0.54 * kv.nbytes / 2


def test_packing_twice_gives_the_same_bytes_and_leaves_the_memory_alone() -> None:
    kv = random_kv(2, 2, 5, 8, 1.0, 1)
    keys = kv.keys.clone()
    assert pack(kv, PROFILE) == pack(kv, PROFILE)
    assert torch.equal(kv.keys, keys)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    kv = random_kv(1, 1, 2, 4, 1.0, 2)
    kv.values[0, 0, 1, 2] = bad
    with pytest.raises(BlobError, match="infinite or undefined"):
        pack(kv, PROFILE)


def test_a_memory_of_another_profile_is_refused_by_name() -> None:
    payload = pack(random_kv(1, 1, 2, 4, 1.0, 3), PROFILE)
    with pytest.raises(BlobError, match=f"profile {PROFILE}.*ffff"):
        unpack(payload, "ffff")


def test_every_flipped_byte_is_refused() -> None:
    payload = pack(random_kv(1, 1, 3, 4, 1.0, 4), PROFILE)
    for at in range(len(payload)):
        damaged = bytearray(payload)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(BlobError):
            unpack(bytes(damaged), PROFILE)


def test_every_truncation_and_every_tail_is_refused() -> None:
    payload = pack(random_kv(1, 1, 3, 4, 1.0, 5), PROFILE)
    for length in range(len(payload)):
        with pytest.raises(BlobError):
            unpack(payload[:length], PROFILE)
    with pytest.raises(BlobError):
        unpack(payload + b"\0", PROFILE)


def test_random_bytes_and_lying_lengths_are_refused() -> None:
    rng = random.Random(6)
    payload = pack(random_kv(1, 1, 3, 4, 1.0, 6), PROFILE)
    for _ in range(500):
        lie = rng.getrandbits(64).to_bytes(8, "little") + payload[8:]
        noise = rng.randbytes(rng.randrange(1, 200))
        for bad in (lie, noise, noise + payload):
            with pytest.raises(BlobError):
                unpack(bad, PROFILE)
