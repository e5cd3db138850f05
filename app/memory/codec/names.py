"""Codecs by name: which one is meant, and which file its codebook is in. Loads no torch.

A profile records a codec by its name alone; `codec/pack.py` has the codecs themselves.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ProfileError, UsageError

UNFITTED = "rotated4"
"""What a model without a codebook gets."""
WITHOUT_CODEBOOK = ("int8", UNFITTED)
SHIPPED = Path(__file__).parent / "codebooks"
_VERSION = "1"


@dataclass(frozen=True)
class CodecName:
    """A codec as profiles and blobs record it. codebook: its file, None for one without."""

    name: str
    codebook: Path | None = None


def chosen(name: str, model: str, folder: Path) -> CodecName:
    """The codec that a setting names; "auto" is the codebook fitted to `model`, else UNFITTED.

    name: also the path of a codebook. model: the model's fingerprint. folder: where this machine
    keeps codebooks, beside those that come with the program.
    Raises UsageError for an unknown name, ProfileError for a codebook that cannot be read or was
    fitted to another model.
    """
    if name == "auto":
        files = (place / f"{model[:16]}.safetensors" for place in (folder, SHIPPED))
        fitted = next((file for file in files if file.is_file()), None)
        return CodecName(UNFITTED) if fitted is None else _fitted(fitted, model)
    if name in WITHOUT_CODEBOOK:
        return CodecName(name)
    if not name.endswith(".safetensors"):
        raise UsageError(
            f"codec {name!r} is unknown: take auto, one of {', '.join(WITHOUT_CODEBOOK)}, or the"
            " path of a codebook that `membank codebook` wrote"
        )
    return _fitted(Path(name).expanduser(), model)


def recorded(name: str, known: CodecName, folder: Path) -> CodecName:
    """The codec that a profile names: `known`, or one of this machine.

    folder: where this machine keeps codebooks, beside those that come with the program.
    Raises ProfileError for one that is not here.
    """
    if name == known.name:
        return known
    if name in WITHOUT_CODEBOOK:
        return CodecName(name)
    for file in (file for place in (folder, SHIPPED) for file in place.glob("*.safetensors")):
        if fitted_name(file.read_bytes()) == name:
            return CodecName(name, file)
    raise ProfileError(
        f"codec {name} is not on this machine: put its codebook into {folder}, or its path into"
        " MEMBANK_CODEC"
    )


def fitted_name(codebook: bytes) -> str:
    """Name of a codebook's codec: two files never share one."""
    return f"transform-{hashlib.sha256(codebook).hexdigest()[:16]}"


def header(codebook: bytes) -> dict[str, Any]:
    """What a codebook's file says of itself: version, model and shape.

    Raises ValueError, KeyError or TypeError for what is no codebook, or one of another version.
    """
    length = int.from_bytes(codebook[:8], "little")
    about: dict[str, Any] = json.loads(
        json.loads(codebook[8 : 8 + length])["__metadata__"]["codebook"]
    )
    if about["version"] != _VERSION:
        raise ValueError(f"it is of version {about['version']}, not {_VERSION}")
    return about


def metadata(model: str, shape: tuple[int, int, int]) -> dict[str, str]:
    """A codebook's file's metadata, as `header` reads it. shape: (layers, kv_heads, head_dim)."""
    return {"codebook": json.dumps({"version": _VERSION, "model": model, "shape": list(shape)})}


def _fitted(file: Path, model: str) -> CodecName:
    try:
        codebook = file.read_bytes()
        of = str(header(codebook)["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"codebook {file} cannot be read: {error}; fit it again") from error
    if of != model:
        raise ProfileError(
            f"codebook {file} was fitted to model {of[:12]}, this model is {model[:12]}: fit one"
            " with `membank codebook`, or set MEMBANK_CODEC=auto"
        )
    return CodecName(fitted_name(codebook), file)
