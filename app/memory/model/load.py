"""Loads a causal language model and its tokenizer."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import ModelError
from app.memory.model.rotary import Rotary


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
    def rotary(self) -> Rotary:
        """How this model rotates keys by position. Raises ModelError when it is not supported."""
        return Rotary(self.model)

    @cached_property
    def decoder(self) -> Any:
        """The layers without the vocabulary head."""
        return self.model.get_decoder()

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or [])


def load(
    folder: str, *, device: str = "auto", dtype: str = "auto", tokenizer: Any = None
) -> LanguageModel:
    """Load weights and tokenizer from a folder or a hub name.

    The `dtype` auto is bfloat16 where the hardware computes in it, else float32. `tokenizer` is the
    folder's, if the caller has already loaded it.
    Raises ModelError naming the model when it cannot be loaded.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if place == "cuda" and not torch.cuda.is_available():
        raise ModelError("MEMBANK_DEVICE=cuda, but torch sees no CUDA device: use cpu or auto")
    precision = fast_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    try:
        with no_progress_bar():
            words = AutoTokenizer.from_pretrained(folder) if tokenizer is None else tokenizer
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model {folder} cannot be loaded: {reason}") from error
    return LanguageModel(model.to(place), words)


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware computes in it, else float32."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing bars while small models load."""
    from transformers.utils import logging as hf

    shown = hf.is_progress_bar_enabled()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf.enable_progress_bar()
