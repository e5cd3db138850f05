"""The encoder profile: all that makes memories comparable."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """What a bank was encoded with. Two profiles with one id read each other's memories."""

    model: str
    """Fingerprint of the language model's weights, configuration and tokenizer."""
    embedder: str
    """Fingerprint of the embedding model."""
    prefix: str
    """Text in front of every chunk while it is encoded."""
    codec: str
    chunk_tokens: int = 128
    layers: str = "all"
    selection: str = "all"

    @property
    def id(self) -> str:
        """32 hex digits of sha256 over all fields."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:32]

    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def strange(self, spec: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
        """Those of `fields` in which another profile, as its JSON says, is not this one."""
        mine = asdict(self)
        return [field for field in fields if spec.get(field) != mine[field]]


READING = ("model", "embedder", "prefix", "layers")
"""Fields in which a reader must be like a bank; how memories are packed, a bank's profile says."""
SPLITTING = ("model", "chunk_tokens")
"""Fields in which one who splits documents must be like the bank."""
SETTINGS = {
    "model": "MEMBANK_MODEL",
    "embedder": "MEMBANK_EMBEDDER",
    "prefix": "MEMBANK_MODEL",
    "codec": "MEMBANK_CODEC",
    "selection": "MEMBANK_COMPACTION",
}
"""Field -> the setting that it follows from."""
