"""Text -> key: one unit vector for search (all-MiniLM-L6-v2 by default)."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from app.errors import ModelError
from app.memory.linear import lay
from app.memory.model import no_progress_bar


class Embedder:
    """A sentence embedder: mean of the last layer over the text's tokens, length 1."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        """Raises ModelError that names the model when it cannot be loaded."""
        try:
            with no_progress_bar():
                self._tokenizer = AutoTokenizer.from_pretrained(folder)
                self._model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"embedder {folder} cannot be loaded: {reason}") from error
        self._model = self._model.eval().requires_grad_(False).to(device)
        lay(self._model)
        limit = self._model.config.max_position_embeddings
        self._limit = min(limit, self._tokenizer.model_max_length)
        self._tokenizing = threading.Lock()  # the tokenizer keeps padding and cutting in itself

    @property
    def dimensions(self) -> int:
        return int(self._model.config.hidden_size)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of the texts that are read, what is cut not counted."""
        with self._tokenizing:
            found = self._tokenizer(list(texts), truncation=True, max_length=self._limit)
        return sum(len(ids) for ids in found.input_ids)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch: int = 32) -> Tensor:
        """(len(texts), dimensions), float32, each row of length 1. Longer texts are cut."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), self.dimensions)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            found[some] = self._embed([texts[i] for i in some])
        return found

    def _embed(self, texts: list[str]) -> Tensor:
        with self._tokenizing:
            inputs = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
            )
        inputs = inputs.to(self._model.device)
        states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1e-9)
        return torch.nn.functional.normalize(mean, dim=1).cpu()
