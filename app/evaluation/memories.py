"""Memories of texts, encoded when they are first needed and kept packed in a folder."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import BlobError
from app.memory.codec.pack import Codec, pack, unpack
from app.memory.encode import Encoder
from app.memory.kv import KV
from app.memory.model.prompt import Prompt
from app.memory.sparse.compact import Compactor
from app.runtime.identity import cache, compactor
from app.runtime.models import Models

_WINDOW = 64


class MemoryStore:
    """A file for each text, of one profile: what is read is what a bank would give."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        prompt: Prompt,
        codec: Codec,
        profile: str,
        compactor: Compactor,
        keep: int = 0,
    ) -> None:
        """`profile`: the encoder profile's id; `keep`: decoded memories that stay in RAM."""
        self._compactor = compactor
        self._folder = folder / profile
        self._encoder, self._prompt = encoder, prompt
        self._codec, self._profile = codec, profile
        self._keep, self._decoded = keep, OrderedDict[str, KV]()

    @classmethod
    def of(cls, m: Models, keep: int = 0) -> "MemoryStore":
        """Where this machine keeps those of the configured profile."""
        folder, profile = cache() / "memories", m.profile.id
        return cls(folder, m.encoder, m.prompt, m.codec, profile, compactor(), keep)

    def make(self, texts: Sequence[str], seen: Callable[[int], None] = lambda _: None) -> None:
        """Encode those that are not there. `seen` is told how many more texts are done."""
        missing = [text for text in dict.fromkeys(texts) if not self._file(text).exists()]
        seen(len(texts) - len(missing))
        for start in range(0, len(missing), _WINDOW):
            some = missing[start : start + _WINDOW]
            chunks = [self._prompt.chunk(text) for text in some]
            dense = self._encoder.encode(chunks)
            kept = self._compactor.compact(self._encoder, chunks, dense)
            for text, kv in zip(some, kept, strict=True):
                self._write(text, kv)
            seen(len(some))

    def load(self, text: str) -> KV:
        """The memory of one text, read back from its packed form, on the model's device.

        A file that is damaged is made again.
        """
        if text in self._decoded:
            self._decoded.move_to_end(text)
            return self._decoded[text]
        self.make([text])
        try:
            kv = self._read(text)
        except BlobError:
            self._file(text).unlink()
            self.make([text])
            kv = self._read(text)
        if self._keep:
            self._decoded[text] = kv
            if len(self._decoded) > self._keep:
                self._decoded.popitem(last=False)
        return kv

    def _read(self, text: str) -> KV:
        lm = self._encoder.lm
        payload = self._file(text).read_bytes()
        return unpack(payload, self._profile, self._codec, lm.dtype).to(lm.device)

    def _write(self, text: str, kv: KV) -> None:
        file = self._file(text)
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_bytes(pack(kv, self._profile, self._codec))
        new.replace(file)

    def _file(self, text: str) -> Path:
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        return self._folder / name[:2] / f"{name}.kv"
