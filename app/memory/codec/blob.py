"""Tensors <-> bytes: one safetensors payload with a header and a checksum of everything.

Nothing is parsed or allocated before every byte is known to be what was written, and no tensor is
taken that the codec did not promise. docs/reference/blob-format.md describes the bytes.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from app.errors import BlobError

VERSION = 2
_ZEROS = "0" * 64
# The header is JSON in a JSON string, so its quotes are escaped.
_CHECKSUM = re.compile(rb'\\"checksum\\":\\"([0-9a-f]{64})\\"')
# A header is some kilobytes of JSON; a length beyond this is a lie.
_MAX_HEADER = 65_536

Spec = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> its safetensors type and shape."""


@dataclass(frozen=True)
class Blob:
    """A checked payload whose tensors are not read yet."""

    header: Mapping[str, Any]
    found: Spec
    payload: bytes

    def tensors(self, expected: Spec) -> dict[str, Tensor]:
        """The tensors, if they are exactly the `expected` ones. Raises BlobError otherwise."""
        if dict(self.found) != dict(expected):
            raise BlobError("memory blob's tensors are not those of its header; encode it again")
        try:
            return parse(self.payload)
        except SafetensorError as error:
            raise BlobError(f"memory blob cannot be read: {error}; encode it again") from error


def write(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """One payload; equal tensors and headers give equal bytes."""
    fields = {"checksum": _ZEROS, "version": VERSION, **header}
    # One field only: safetensors writes several in no fixed order.
    text = json.dumps(fields, separators=(",", ":"))
    payload = serialise({n: t.contiguous() for n, t in tensors.items()}, {"membank": text})
    at = _field(payload).start(1)
    digest = hashlib.sha256(payload).hexdigest().encode()
    return payload[:at] + digest + payload[at + 64 :]


def read(payload: bytes) -> Blob:
    """Check every byte, then read the header. Raises BlobError for whatever is not a whole blob."""
    match = _field(payload)
    digest = hashlib.sha256(payload[: match.start(1)])
    digest.update(_ZEROS.encode())
    digest.update(memoryview(payload)[match.end(1) :])
    if digest.hexdigest().encode() != match.group(1):
        raise BlobError("memory blob is damaged: its checksum does not match; encode it again")
    try:
        (length,) = struct.unpack("<Q", payload[:8])
        if length > _MAX_HEADER:
            raise ValueError("header too long")
        head = json.loads(payload[8 : 8 + length])
        header = json.loads(head.pop("__metadata__")["membank"])
        found = {name: (t["dtype"], tuple(t["shape"])) for name, t in head.items()}
        version = header["version"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise BlobError("memory blob has a header that cannot be read; encode it again") from error
    if version not in (1, VERSION):
        raise BlobError(
            f"memory blob is of version {version}; this program reads versions 1 and {VERSION}:"
            " encode the bank again"
        )
    return Blob(header, found, payload)


def _field(payload: bytes) -> re.Match[bytes]:
    match = _CHECKSUM.search(payload, 0, _MAX_HEADER)
    if match is None:
        raise BlobError("memory blob is truncated or no memory blob at all; encode it again")
    return match
