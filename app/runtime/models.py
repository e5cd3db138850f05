"""The models that the settings name, loaded once per process."""

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from app.bank.find import Bank
from app.memory.codec.names import recorded
from app.memory.codec.pack import Codec, load_codec
from app.memory.model.packaged import embedder_folder, language_model_folder
from app.memory.model.prompt import Prompt
from app.memory.profile import Profile
from app.runtime.identity import (
    codebooks,
    codec_name,
    native,
    profile,
    prompt,
    require_reading,
    tokenizer,
)
from app.settings import settings

if TYPE_CHECKING:
    from app.memory.decode.generate import Generator
    from app.memory.embed.embedder import Embedder
    from app.memory.encode import Encoder
    from app.memory.model.adapter import Adapter
    from app.memory.model.load import LanguageModel

Mode = Literal["memory", "rag", "closed"]


@dataclass(frozen=True)
class Models:
    """A language model with its encoder and prompt, the embedder, the codec, and their profile."""

    lm: "LanguageModel"
    encoder: "Encoder"
    prompt: Prompt
    embedder: "Embedder"
    codec: Codec
    profile: Profile

    @property
    def window(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return int(self.lm.model.config.get_text_config().max_position_embeddings)


@lru_cache(maxsize=1)
def models() -> Models:
    """Load all models. The first call takes several seconds."""
    import torch

    from app.memory.embed.embedder import Embedder
    from app.memory.encode import Encoder
    from app.memory.model.load import load

    chosen = settings()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    lm = load(
        language_model_folder(chosen.model, chosen.models),
        device=chosen.device,
        dtype=chosen.dtype,
        tokenizer=tokenizer(),
    )
    words = prompt()
    embedder = Embedder(embedder_folder(chosen.embedder), str(lm.device), lm.dtype)
    return Models(lm, Encoder(lm, words.prefix), words, embedder, codec(), profile())


def loaded() -> bool:
    """True once the models are loaded."""
    return models.cache_info().currsize > 0


@lru_cache(maxsize=1)
def codec() -> Codec:
    """The codec that the settings select for the configured model."""
    return load_codec(codec_name(), native())


def codec_of(bank: Bank) -> Codec:
    """The codec that decodes a bank's memories. Raises ProfileError if they cannot be read."""
    require_reading(bank)
    return _codec_recorded(str(bank.spec["codec"]))


@lru_cache(maxsize=8)
def _codec_recorded(name: str) -> Codec:
    if name == codec_name().name:
        return codec()
    return load_codec(recorded(name, codec_name(), codebooks()))


@dataclass(frozen=True)
class Adapted:
    """The model that reads in a mode, with an adapter merged into it if there is one."""

    lm: "LanguageModel"
    adapter: "Adapter | None"


_loading = threading.RLock()
"""Held while something is loaded, so that other threads that need it wait for it."""


def adapted(mode: Mode, choice: str | None = None) -> Adapted:
    """The model that reads in a mode, with the adapter `choice`, by default the settings'.

    Raises AdapterError when the adapter is damaged or does not fit.
    """
    with _loading:
        return _adapted(mode, settings().adapter if choice is None else choice)


@lru_cache(maxsize=4)
def _adapted(mode: Mode, choice: str) -> Adapted:
    from app.memory.model.adapter import chosen

    m = models()
    found = None
    if mode != "closed":
        found = chosen(choice, m.profile.model, m.profile.prefix, mode)
    return Adapted(m.lm if found is None else found.merged(m.lm), found)


def generator(mode: Mode = "closed", choice: str | None = None) -> "Generator":
    """The generator of answers in a mode, with an adapter as in `reading`. Packs its weights first.

    Raises AdapterError when the adapter is damaged or does not fit.
    """
    chosen = settings().adapter if choice is None else choice
    with _loading:
        changed = adapted(mode, chosen).adapter is not None
        return _generator(mode, chosen) if changed else _generator("closed", "none")


@lru_cache(maxsize=4)
def _generator(mode: Mode, choice: str) -> "Generator":
    from app.memory.decode.generate import Generator

    return Generator(adapted(mode, choice).lm, settings().weights, native())
