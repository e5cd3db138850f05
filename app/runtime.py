"""The models of this process, loaded once, as the settings name them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.access.tenants import Bank
from app.errors import ModelError, ProfileError, UsageError
from app.memory.codec import Codec, codec_for, codec_named
from app.memory.fingerprint import fingerprint
from app.memory.packaged import embedder_folder, language_model_folder
from app.memory.profile import READING, SETTINGS, SPLITTING, Profile
from app.memory.prompt import Prompt
from app.memory.transform import Transform
from app.settings import settings

if TYPE_CHECKING:
    from app.answer.generate import Generator
    from app.memory.compact import Compactor
    from app.memory.embed import Embedder
    from app.memory.encode import Encoder
    from app.memory.model import LanguageModel
    from app.training.adapter import Adapter

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
        """Tokens that a question and its answer may have."""
        return int(self.lm.model.config.get_text_config().max_position_embeddings)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The language model's tokenizer, without its weights."""
    from transformers import AutoTokenizer

    folder = language_model_folder(settings().model, settings().models)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"tokenizer of {folder} cannot be loaded: {reason}") from error


@lru_cache(maxsize=1)
def profile() -> Profile:
    """The encoder profile of the configured models. Loads no weights."""
    return Profile(
        model=_fingerprint(language_model_folder(settings().model, settings().models)),
        embedder=_fingerprint(embedder_folder(settings().embedder)),
        prefix=prompt().prefix_text,
        codec=codec().name,
        selection=str(compactor()),
        context=f"{settings().context} tokens before it" if settings().context else "chunk alone",
    )


@lru_cache(maxsize=1)
def codec() -> Codec:
    """The codec that the settings choose for the configured model."""
    chosen = settings()
    model = _fingerprint(language_model_folder(chosen.model, chosen.models))
    return codec_for(chosen.codec, model, codebooks(), native())


@lru_cache(maxsize=1)
def compactor() -> "Compactor":
    """What the settings keep of a memory. Raises UsageError when they cannot be read."""
    from app.memory.compact import Compactor

    chosen = Compactor.parse(settings().compaction)
    if chosen.drops_layers and isinstance(codec(), Transform):
        raise UsageError(
            f"MEMBANK_COMPACTION={settings().compaction} drops layers, and the fitted codec takes"
            " all of them together: set MEMBANK_CODEC to another, or leave the layers out"
        )
    return chosen


def codebooks() -> Path:
    """Where this machine keeps the codebooks that were fitted here."""
    return settings().models.expanduser() / "codebooks"


def native() -> Path:
    """Where this machine keeps what it compiled for itself."""
    return settings().models.expanduser() / "native"


def cache() -> Path:
    """Where this machine keeps vectors and memories of training and evaluation texts."""
    return settings().models.expanduser().parent / "evaluation"


def _fingerprint(folder: str) -> str:
    return fingerprint(folder, settings().models.expanduser() / "fingerprints.json")


def codec_of(bank: Bank) -> Codec:
    """What a bank's memories are decoded with. Raises ProfileError when they cannot be read here.

    Codec, selection and context may be others than this process's: a blob says how it is packed.
    """
    _require(bank, READING)
    return _codec_named(str(bank.spec["codec"]))


@lru_cache(maxsize=8)
def _codec_named(name: str) -> Codec:
    return codec_named(name, codec(), codebooks())


def require_splitting(bank: Bank) -> None:
    """Raises ProfileError when a bank's documents are split otherwise than by this process."""
    _require(bank, SPLITTING)


def _require(bank: Bank, fields: Sequence[str]) -> None:
    strange = profile().strange(bank.spec, fields)
    if not strange:
        return
    told = f"bank {bank.name!r} is encoded under profile {bank.profile}"
    if bank.switched_at:
        told += f" since {bank.switched_at:%Y-%m-%d %H:%M:%S%z}"
    if bank.next_profile:
        told += f" and is being encoded anew under {bank.next_profile}"
    names = " and ".join(dict.fromkeys(SETTINGS.get(field, field) for field in strange))
    raise ProfileError(
        f"{told}; this process has {profile().id} (model {settings().model}), with another"
        f" {', '.join(strange)}: set {names} as the bank's profile has it, let the bank be encoded"
        " anew (membank bank reencode), or make a new bank and ingest again"
    )


@lru_cache(maxsize=1)
def models() -> Models:
    """Load everything. Takes some seconds, once per process."""
    import torch

    from app.memory.embed import Embedder
    from app.memory.encode import Encoder
    from app.memory.model import load

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
    """Whether the models are."""
    return models.cache_info().currsize > 0


@dataclass(frozen=True)
class Reading:
    """What a mode's answers are read with: the model, changed by an adapter if there is one."""

    lm: "LanguageModel"
    adapter: "Adapter | None"


_loading = threading.RLock()
"""Held while something is loaded, so that threads that want the same wait for it."""


def reading(mode: Mode, choice: str | None = None) -> Reading:
    """The model that reads in a mode. `choice`: an adapter, default what the settings name.

    Raises AdapterError for one that is damaged or does not fit.
    """
    with _loading:
        return _reading(mode, settings().adapter if choice is None else choice)


@lru_cache(maxsize=4)
def _reading(mode: Mode, choice: str) -> Reading:
    from app.training.adapter import chosen

    m = models()
    found = None
    if mode != "closed":
        found = chosen(choice, m.profile.model, m.profile.prefix, mode)
    return Reading(m.lm if found is None else found.merged(m.lm), found)


def generator(mode: Mode = "closed", choice: str | None = None) -> "Generator":
    """What answers in a mode with an adapter, as in `reading`. Its weights are packed first."""
    chosen = settings().adapter if choice is None else choice
    with _loading:
        adapted = reading(mode, chosen).adapter is not None
        return _generator(mode, chosen) if adapted else _generator("closed", "none")


@lru_cache(maxsize=4)
def _generator(mode: Mode, choice: str) -> "Generator":
    from app.answer.generate import Generator

    return Generator(reading(mode, choice).lm, settings().weights, native())


@lru_cache(maxsize=1)
def prompt() -> Prompt:
    """The configured model's prompt, without its weights."""
    return Prompt.of(tokenizer())


def count_tokens(text: str) -> int:
    """Tokens that a chunk takes, the blank line that follows it included."""
    return len(prompt().chunk(text))
