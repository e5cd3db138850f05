"""docs/reference/blob-format.md is enough to read a blob: this reader knows nothing else."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from app.memory.codec.pack import pack, unpack
from app.memory.kv import KV
from app.memory.profile import Profile

PROFILE = "0123456789abcdef0123456789abcdef"
DTYPES = {"I8": np.dtype("<i1"), "F32": np.dtype("<f4")}
CHECKSUM = re.compile(rb'\\"checksum\\":\\"([0-9a-f]{64})\\"')


@dataclass(frozen=True)
class Blob:
    """What the reader of the document finds."""

    header: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def keys(self) -> np.ndarray:
        return self.tensors["keys"].astype(np.float32) * self.tensors["key_scale"]

    @property
    def values(self) -> np.ndarray:
        return self.tensors["values"].astype(np.float32) * self.tensors["value_scale"]


def read(payload: bytes) -> Blob:
    """The steps of the document, in its order."""
    found = CHECKSUM.search(payload[:65_536])
    if found is None:
        raise ValueError("not a whole blob")
    zeroed = payload[: found.start(1)] + b"0" * 64 + payload[found.end(1) :]
    if hashlib.sha256(zeroed).hexdigest() != found.group(1).decode():
        raise ValueError("checksum")
    (length,) = struct.unpack("<Q", payload[:8])
    assert (8 + length) % 8 == 0
    head = json.loads(payload[8 : 8 + length].decode("utf-8"))
    assert list(head["__metadata__"]) == ["membank"]
    header = json.loads(head.pop("__metadata__")["membank"])
    data = payload[8 + length :]
    tensors = {}
    for name, entry in head.items():
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(data)
    return Blob(header, tensors)


def random_kv(scale: float = 1.0, entries: int = 7) -> KV:
    generator = torch.Generator().manual_seed(entries)
    shape = (3, 2, entries, 8)
    return KV(*(torch.randn(shape, generator=generator) * scale for _ in range(2)))


def with_zeros() -> KV:
    kv = random_kv()
    kv.keys[:, :, :, 3] = 0
    kv.values[:, :, 2] = 0
    return kv


KVS: list[Callable[[], KV]] = [
    random_kv,
    lambda: random_kv(1e-30),
    lambda: random_kv(1e-40),
    lambda: random_kv(1e30),
    lambda: random_kv(entries=1),
    with_zeros,
]


@pytest.mark.parametrize("make", KVS)
def test_reader_made_from_the_document_finds_the_same_numbers(make: Callable[[], KV]) -> None:
    payload = pack(make(), PROFILE)
    blob, theirs = read(payload), unpack(payload, PROFILE)
    np.testing.assert_array_equal(blob.keys, theirs.keys.numpy())
    np.testing.assert_array_equal(blob.values, theirs.values.numpy())


@pytest.mark.parametrize("make", KVS)
def test_written_steps_and_scales_follow_the_formulas(make: Callable[[], KV]) -> None:
    kv = make()
    tensors = read(pack(kv, PROFILE)).tensors
    for name, numbers, axis in (("key", kv.keys.numpy(), 2), ("value", kv.values.numpy(), 3)):
        scale = np.abs(numbers).max(axis=axis, keepdims=True) / np.float32(127)
        steps = np.rint(numbers / np.maximum(scale, np.float32(1.17549435e-38)))
        np.testing.assert_array_equal(tensors[f"{name}_scale"], scale)
        np.testing.assert_array_equal(tensors[f"{name}s"], np.clip(steps, -127, 127))


def test_header_and_tensors_are_those_of_the_tables() -> None:
    blob = read(pack(random_kv(), PROFILE))
    assert list(blob.header) == ["checksum", "version", "codec", "profile", "shape", "length"]
    del blob.header["checksum"]
    assert blob.header == {
        "version": 2,
        "codec": "int8",
        "profile": PROFILE,
        "shape": [3, 2, 7, 8],
        "length": 7,
    }
    assert {name: (t.dtype, t.shape) for name, t in blob.tensors.items()} == {
        "keys": (np.int8, (3, 2, 7, 8)),
        "key_scale": (np.float32, (3, 2, 1, 8)),
        "values": (np.int8, (3, 2, 7, 8)),
        "value_scale": (np.float32, (3, 2, 7, 1)),
    }


def test_reader_made_from_the_document_refuses_damage() -> None:
    payload = pack(random_kv(), PROFILE)
    for at in range(0, len(payload), 7):
        damaged = bytearray(payload)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match=r"checksum|whole"):
            read(bytes(damaged))
    with pytest.raises(ValueError, match=r"checksum|whole"):
        read(payload[:-1])


def test_profile_id_follows_from_its_spec() -> None:
    profile = Profile(model="m", embedder="e", prefix="Überall:\n", codec="int8")
    spec = json.loads(profile.json())
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    assert profile.id == digest[:32]
