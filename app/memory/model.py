"""Load a causal language model and its tokenizer, and name its weights."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import ModelError
from app.memory.rotary import Rotary

_VOLATILE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class Shape:
    """What a KV of this model looks like: (layers, kv_heads, entries, head_dim)."""

    layers: int
    kv_heads: int
    head_dim: int


class LanguageModel:
    """A frozen causal LM, its tokenizer and its rotary geometry, on one device."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @cached_property
    def shape(self) -> Shape:
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        return Shape(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    @cached_property
    def rotary(self) -> Rotary:
        """How this model turns its keys with their position (ModelError when it does not)."""
        return Rotary(self.model)

    @cached_property
    def decoder(self) -> Any:
        """The layers without the vocabulary head."""
        return self.model.get_decoder()

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text`, with no special tokens added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def load(folder: str, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load weights and tokenizer from a folder or a hub name.

    `dtype` auto takes bfloat16 where the processor computes in it, else float32.
    Raises ModelError that names the model when it cannot be loaded.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if place == "cuda" and not torch.cuda.is_available():
        raise ModelError("MEMBANK_DEVICE=cuda, but torch sees no CUDA device: use cpu or auto")
    precision = fast_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    try:
        with _no_progress_bar():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model {folder} cannot be loaded: {reason}") from error
    return LanguageModel(model.to(place), tokenizer)


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is computed in hardware, else float32."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def fingerprint(folder: str, cache: Path | None = None) -> str:
    """Name of a model's weights, configuration and tokenizer: sha256, hex.

    Files are read once; `cache` is a JSON file that remembers digests by size and time.
    A hub name is resolved to its snapshot on disk.
    """
    root = _snapshot(folder)
    known = _read_cache(cache)
    digest = hashlib.sha256()
    files = sorted([*root.glob("*.safetensors"), *root.glob("tokenizer*"), *root.glob("vocab*")])
    if not any(f.suffix == ".safetensors" for f in files):
        raise ModelError(f"{root} holds no .safetensors weights, the only kind that is read")
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
        raise ModelError(f"model {folder} cannot be had from the hub: {error}") from error


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
    with contextlib.suppress(OSError):  # only a cache: a read-only folder costs time, not more
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(cache)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging as hf

    shown = hf.is_progress_bar_enabled()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf.enable_progress_bar()
