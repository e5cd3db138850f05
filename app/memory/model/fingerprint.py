"""Identifies a model's weights, so that a memory is never read by a different model."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from app.errors import ModelError

# Entries that a library writes into a configuration without changing the model.
_VOLATILE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}


def fingerprint(folder: str, cache: Path | None = None) -> str:
    """Return the SHA-256 of a model's weights, configuration and tokenizer, in hex.

    `cache` is a JSON file that remembers files' digests by size and time, so that each is read
    only once. A hub name is resolved to its snapshot on disk. Raises ModelError when the model has
    no safetensors weights, or cannot be downloaded.
    """
    root = _snapshot(folder)
    known = _read_cache(cache)
    digest = hashlib.sha256()
    files = sorted([*root.glob("*.safetensors"), *root.glob("tokenizer*"), *root.glob("vocab*")])
    if not any(f.suffix == ".safetensors" for f in files):
        raise ModelError(f"{root} holds no .safetensors weights, the only supported format")
    for file in files:
        digest.update(f"{file.name}:{_file_digest(file, known)}\n".encode())
    config = json.loads((root / "config.json").read_text())
    stable = {key: value for key, value in config.items() if key not in _VOLATILE}
    digest.update(json.dumps(stable, sort_keys=True).encode())
    if cache is not None:
        _write_cache(cache, known)
    return digest.hexdigest()


def _snapshot(folder: str) -> Path:
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(folder, allow_patterns=["*.json", "*.safetensors", "vocab*"]))
    except Exception as error:
        raise ModelError(f"model {folder} cannot be downloaded from the hub: {error}") from error


def _file_digest(file: Path, known: dict[str, str]) -> str:
    stat = file.stat()
    key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return known[key]


def _read_cache(cache: Path | None) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text())) if cache else {}
    except (OSError, ValueError):
        return {}


def _write_cache(cache: Path, known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # only a cache: a read-only folder costs nothing but time
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(cache)
