"""KV <-> bytes: one safetensors payload, quantised, with a header and a checksum of everything.

Keys are quantised before any rotation, one scale per channel; values one scale per token (KIVI,
arXiv 2402.02750; KVQuant, arXiv 2401.18079). 8 bits lose nothing that can be measured in answers
(docs/decisions). The format is described byte by byte in docs/reference/blob-format.md.
"""

import hashlib
import json
import re
import struct
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from app.errors import BlobError
from app.memory.kv import KV

VERSION = 1
CODEC = "int8"
_ZEROS = "0" * 64
# The header is JSON in a JSON string, so its quotes are escaped.
_CHECKSUM = re.compile(rb'\\"checksum\\":\\"([0-9a-f]{64})\\"')
_TENSORS = {"keys", "key_scale", "values", "value_scale"}
# A header is some hundred bytes of JSON; a length beyond this is a lie.
_MAX_HEADER = 65_536


def pack(kv: KV, profile: str) -> bytes:
    """Quantise to 8 bits and serialise, marked with the encoder profile's id.

    Raises BlobError when a key or a value is not finite.
    """
    if not (kv.keys.isfinite().all() and kv.values.isfinite().all()):
        raise BlobError("a memory with infinite or undefined numbers cannot be packed")
    keys, key_scale = _quantise(kv.keys, dim=2)
    values, value_scale = _quantise(kv.values, dim=3)
    header = {
        "checksum": _ZEROS,
        "version": VERSION,
        "codec": CODEC,
        "profile": profile,
        "shape": list(kv.keys.shape),
    }
    payload = serialise(
        {"keys": keys, "key_scale": key_scale, "values": values, "value_scale": value_scale},
        # One field only: safetensors writes several in no fixed order, and equal memories are to
        # be equal bytes.
        metadata={"membank": json.dumps(header, separators=(",", ":"))},
    )
    at = _field(payload).start(1)
    digest = hashlib.sha256(payload).hexdigest().encode()
    return payload[:at] + digest + payload[at + 64 :]


def unpack(payload: bytes, profile: str, dtype: torch.dtype = torch.float32) -> KV:
    """The KV of a packed payload, in `dtype`.

    Raises BlobError when the payload is damaged or truncated, of another version or codec, or
    encoded under another profile than `profile`.
    """
    header = _verified(payload)
    if (header["version"], header["codec"]) != (VERSION, CODEC):
        raise BlobError(
            f"memory blob is of version {header['version']}, codec {header['codec']}; this"
            f" program reads version {VERSION}, codec {CODEC}: encode the bank again"
        )
    if header["profile"] != profile:
        raise BlobError(
            f"memory blob was encoded under profile {header['profile']}, the reader has"
            f" {profile}: read it with the model that encoded it, or encode the bank again"
        )
    tensors = parse(payload)
    keys = _restore(tensors["keys"], tensors["key_scale"], dtype)
    values = _restore(tensors["values"], tensors["value_scale"], dtype)
    return KV(keys, values)


def _verified(payload: bytes) -> dict[str, Any]:
    """Check every byte before anything is parsed or allocated, then read the header."""
    match = _field(payload)
    digest = hashlib.sha256()
    digest.update(payload[: match.start(1)])
    digest.update(_ZEROS.encode())
    digest.update(memoryview(payload)[match.end(1) :])
    if digest.hexdigest().encode() != match.group(1):
        raise BlobError("memory blob is damaged: its checksum does not match; encode it again")
    try:
        head = json.loads(payload[8 : 8 + struct.unpack("<Q", payload[:8])[0]])
        header = json.loads(head["__metadata__"]["membank"])
        layers, heads, entries, dim = header["shape"]
        whole = (layers, heads, entries, dim)
        expected = {
            "keys": ("I8", whole),
            "key_scale": ("F32", (layers, heads, 1, dim)),
            "values": ("I8", whole),
            "value_scale": ("F32", (layers, heads, entries, 1)),
        }
        found = {n: (head[n]["dtype"], tuple(head[n]["shape"])) for n in _TENSORS}
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise BlobError("memory blob has a header that cannot be read; encode it again") from error
    if header.get("codec") == CODEC and found != expected:
        raise BlobError("memory blob's tensors are not those of its header; encode it again")
    return header  # type: ignore[no-any-return]


def _field(payload: bytes) -> re.Match[bytes]:
    match = _CHECKSUM.search(payload, 0, _MAX_HEADER)
    if match is None:
        raise BlobError("memory blob is truncated or no memory blob at all; encode it again")
    return match


def _quantise(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    wide = x.detach().float().cpu()
    scale = wide.abs().amax(dim=dim, keepdim=True) / 127.0
    steps = (wide / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return steps.clamp(-127, 127).to(torch.int8).contiguous(), scale.contiguous()


def _restore(steps: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return steps.to(dtype).mul_(scale.to(dtype))
