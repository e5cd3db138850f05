"""The profile, codec and prompt that the settings give this process.

Loads no weights, and imports torch only to parse a compaction that keeps less than all.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.bank.find import Bank
from app.errors import ModelError, ProfileError, UsageError
from app.memory.codec.names import CodecName, chosen
from app.memory.model.fingerprint import fingerprint
from app.memory.model.packaged import embedder_folder, language_model_folder
from app.memory.model.prompt import Prompt
from app.memory.profile import READING, SETTINGS, SPLITTING, Profile
from app.settings import settings

if TYPE_CHECKING:
    from app.memory.sparse.compact import Compactor


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
    """The encoder profile of the configured models."""
    return Profile(
        model=_fingerprint(language_model_folder(settings().model, settings().models)),
        embedder=_fingerprint(embedder_folder(settings().embedder)),
        prefix=prompt().prefix_text,
        codec=codec_name().name,
        selection=_selection(),
    )


@lru_cache(maxsize=1)
def codec_name() -> CodecName:
    """The name of the codec that the settings select for the configured model."""
    model = _fingerprint(language_model_folder(settings().model, settings().models))
    return chosen(settings().codec, model, codebooks())


@lru_cache(maxsize=1)
def compactor() -> "Compactor":
    """The compaction that the settings select.

    Raises UsageError when it cannot be read, or does not go with the codec.
    """
    from app.memory.sparse.compact import Compactor

    found = Compactor.parse(settings().compaction)
    if found.drops_layers and codec_name().codebook is not None:
        raise UsageError(
            f"MEMBANK_COMPACTION={settings().compaction} drops layers, but a fitted codec packs"
            " all layers together: set MEMBANK_CODEC to another codec, or leave out `layers`"
        )
    return found


def _selection() -> str:
    everything = "all"
    return everything if settings().compaction == everything else str(compactor())


def codebooks() -> Path:
    """The folder of the codebooks that were fitted on this machine."""
    return settings().models.expanduser() / "codebooks"


def native() -> Path:
    """The folder of the C code that was compiled on this machine."""
    return settings().models.expanduser() / "native"


def cache() -> Path:
    """The folder of cached vectors and memories of training and evaluation texts."""
    return settings().models.expanduser().parent / "evaluation"


def _fingerprint(folder: str) -> str:
    return fingerprint(folder, settings().models.expanduser() / "fingerprints.json")


def require_reading(bank: Bank) -> None:
    """Raises ProfileError when this process cannot read a bank's memories.

    Codec and selection may differ from this process's, because a blob says how it is packed.
    """
    _require(bank, READING)


def require_splitting(bank: Bank) -> None:
    """Raises ProfileError when this process would split a bank's documents differently."""
    _require(bank, SPLITTING)


def _require(bank: Bank, fields: Sequence[str]) -> None:
    strange = profile().strange(bank.spec, fields)
    if not strange:
        return
    told = f"bank {bank.name!r} is encoded under profile {bank.profile}"
    if bank.switched_at:
        told += f" since {bank.switched_at:%Y-%m-%d %H:%M:%S%z}"
    if bank.next_profile:
        told += f" and is being re-encoded under {bank.next_profile}"
    names = " and ".join(dict.fromkeys(SETTINGS.get(field, field) for field in strange))
    raise ProfileError(
        f"{told}; this process has {profile().id} (model {settings().model}), with another"
        f" {', '.join(strange)}: set {names} as in the bank's profile, re-encode the bank"
        " (membank bank reencode), or make a new bank and ingest again"
    )


@lru_cache(maxsize=1)
def prompt() -> Prompt:
    """The configured model's prompt."""
    return Prompt.of(tokenizer())


def count_tokens(text: str) -> int:
    """The number of tokens in a chunk, including the blank line after it."""
    return len(prompt().chunk(text))
