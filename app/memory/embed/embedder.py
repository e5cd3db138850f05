"""Turns a text into its key, a unit vector for search (all-MiniLM-L6-v2 by default)."""

import contextlib
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from app.errors import ModelError
from app.memory.embed.bert import Bert
from app.memory.encode import padded
from app.memory.model.load import no_progress_bar

_BATCH = 32
"""Texts per forward pass on a GPU."""


class Embedder:
    """A sentence embedder: the mean of the last layer over the text's tokens, scaled to length 1.

    On a CPU, texts are computed one by one: padding costs more than batching saves, and a text's
    key then does not depend on the texts beside it, down to the last bit.
    """

    def __init__(
        self, folder: str, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is that of products on a CPU if the model is BERT's; all else is float32.

        Raises ModelError naming the model when it cannot be loaded.
        """
        try:
            with no_progress_bar():
                self._tokenizer = AutoTokenizer.from_pretrained(folder)
                self._model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"embedder {folder} cannot be loaded: {reason}") from error
        self._model = self._model.eval().requires_grad_(False).to(device)
        self._bert: Bert | None = None
        if self._model.device.type == "cpu":
            with contextlib.suppress(ModelError):  # not a BERT: transformers computes it
                self._bert = Bert(self._model, dtype)
        limit = self._model.config.max_position_embeddings
        self._limit = min(limit, self._tokenizer.model_max_length)
        self._tokenizing = threading.Lock()  # the tokenizer holds padding and truncation as state

    @property
    def dimensions(self) -> int:
        return int(self._model.config.hidden_size)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return keys (len(texts), dimensions), float32, each of length 1.

        Texts longer than the model's limit are truncated.
        """
        found = torch.empty(len(texts), self.dimensions)
        tokens = self._tokens(texts)
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        batch = 1 if self._model.device.type == "cpu" else _BATCH
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            found[some] = self._means([tokens[i] for i in some])
        return found

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        with self._tokenizing:
            found = self._tokenizer(list(texts), truncation=True, max_length=self._limit)
        return found.input_ids  # type: ignore[no-any-return]

    def _means(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids = padded(rows, self._model.device)
        if self._bert is not None:
            return torch.nn.functional.normalize(self._bert(ids[0]).mean(dim=0), dim=0)[None]
        lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths
        states = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        mean = (states * mask[..., None]).sum(dim=1) / lengths
        return torch.nn.functional.normalize(mean, dim=1).cpu()
