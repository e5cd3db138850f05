"""Ten thousand ways in which a blob can be wrong: each is refused, with little work and room."""

import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest
import torch

from app.errors import BlobError
from app.memory.codec.pack import SIMPLE, Codec, pack, unpack
from app.memory.kv import KV
from tests.unit.memory.test_quantise import compacted
from tests.work import calls

PROFILE = "0123456789abcdef0123456789abcdef"
BLOBS = [
    *(
        (name, pack(KV(torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)), PROFILE, codec))
        for name, codec in SIMPLE.items()
    ),
    ("int8", pack(compacted(), PROFILE)),
]
LIES = [2**63 - 1, 2**40, 2**31, 10**6, -1, 0, 1, 3, 1.5, "8", None, [], {}, [2, 2], True]
PLACES = ("version", "codec", "profile", "shape", "length", "layers")


def sealed(head: dict[str, object], data: bytes) -> bytes:
    """A blob whose checksum is right, whatever its header says."""
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    payload = len(text).to_bytes(8, "little") + text + data
    at = payload.index(b'checksum\\":') + len(b'checksum\\": \\"')
    if b'checksum\\":\\"' in payload:
        at -= 1
    zeroed = payload[:at] + b"0" * 64 + payload[at + 64 :]
    return zeroed[:at] + hashlib.sha256(zeroed).hexdigest().encode() + zeroed[at + 64 :]


def flipped(rng: random.Random, blob: bytes) -> bytes:
    changed = bytearray(blob)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(blob))] ^= rng.randint(1, 255)
    return bytes(changed)


def cut(rng: random.Random, blob: bytes) -> bytes:
    return blob[: rng.randrange(len(blob))]


def moved(rng: random.Random, blob: bytes) -> bytes:
    a, b = sorted(rng.sample(range(len(blob)), 2))
    return blob[:a] + blob[b:] + blob[a:b]


def longer(rng: random.Random, blob: bytes) -> bytes:
    return blob + rng.randbytes(rng.randint(1, 50))


def lying(rng: random.Random, blob: bytes) -> bytes:
    """The checksum is made anew: only what the header says can give it away."""
    length = int.from_bytes(blob[:8], "little")
    head, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    about = json.loads(head["__metadata__"]["membank"])
    if rng.random() < 0.5:
        field = rng.choice(PLACES)
        lie = rng.choice(LIES)
        if field == "shape" and rng.random() < 0.7:
            lie = list(about["shape"])
            lie[rng.randrange(4)] = rng.choice(LIES)
        about[field] = lie
        head["__metadata__"]["membank"] = json.dumps(about, separators=(",", ":"))
    else:
        tensor = head[rng.choice([n for n in head if n != "__metadata__"])]
        field = rng.choice(["dtype", "shape", "data_offsets"])
        if field == "dtype":
            tensor[field] = rng.choice(["F64", "U8", "I64", "BOOL", "nonsense"])
        else:
            tensor[field] = list(tensor[field])
            tensor[field][rng.randrange(len(tensor[field]))] = rng.choice(LIES)
    return sealed(head, data)


@pytest.mark.parametrize("mutate", [flipped, cut, moved, longer, lying])
def test_two_thousand_mutations_are_refused(
    mutate: Callable[[random.Random, bytes], bytes],
) -> None:
    rng = random.Random(mutate.__name__)
    tried = 0
    tracemalloc.start()
    try:
        while tried < 2_000:
            name, blob = rng.choice(BLOBS)
            bad = mutate(rng, blob)
            if same_meaning(bad, blob):
                continue
            tried += 1
            # The 50 ms that a refusal may take are a hundred times as many.
            assert calls(partial(refuse, bad, SIMPLE[name])) < 1_000
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def refuse(bad: bytes, codec: Codec) -> None:
    with pytest.raises(BlobError):
        unpack(bad, PROFILE, codec)


def same_meaning(bad: bytes, blob: bytes) -> bool:
    """A lie that happens to be the truth: the same header in other words, the same data."""
    found = []
    for x in (bad, blob):
        start = 8 + int.from_bytes(x[:8], "little")
        try:
            head = json.loads(x[8:start])
            about = json.loads(head.pop("__metadata__")["membank"]) | {"checksum": ""}
        except (ValueError, KeyError, TypeError):
            return False
        found.append(json.dumps([head, about, x[start:].hex()], sort_keys=True))
    return found[0] == found[1]
