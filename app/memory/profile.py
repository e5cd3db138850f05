"""The encoder profile: all that makes memories comparable."""

import hashlib
import json
from dataclasses import asdict, dataclass


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
    context: str = "chunk alone"
    """What a chunk has seen besides the prefix while it was encoded."""

    @property
    def id(self) -> str:
        """32 hex digits of sha256 over all fields."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:32]

    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)
