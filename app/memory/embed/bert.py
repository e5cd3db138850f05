"""A BERT embedder's forward pass, written out for a single text on a CPU.

For one question to a small embedder, transformers spends as long on calling the layers as the
layers spend on computing. Products are computed in `dtype`; the residual stream stays float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.errors import ModelError
from app.memory.model.product import Product, rounded

_PROBE = (101, 2129, 2116, 2420, 102, 7, 3)


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """A layer's weights; the products for query, key and value are one."""

    qkv: Product
    out: Product
    norm_attention: Norm
    up: Product
    down: Product
    norm: Norm


class Bert:
    """A model's weights in `dtype`, and its forward pass."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Raises ModelError, saying why the model is not computed as BERT is."""
        config = model.config
        if config.model_type != "bert" or config.hidden_act != "gelu":
            raise ModelError(f"it is a {config.model_type} with {config.hidden_act}")
        self.dtype, self.heads = dtype, int(config.num_attention_heads)
        front = model.embeddings
        self.words: Tensor = front.word_embeddings.weight.detach().float()
        # In a single text, all tokens are of the first type.
        kind = front.token_type_embeddings.weight[0]
        self.places: Tensor = (front.position_embeddings.weight + kind).detach().float()
        self.norm = _norm(front.LayerNorm)
        self.layers = [self._layer(module) for module in model.encoder.layer]
        self._require_same(model)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (n,) -> the last layer's states (n, hidden), float32."""
        n = len(ids)
        # Rows beyond the text are computed too, but no token attends to them.
        rows = min(rounded(n), len(self.places))
        x = self.norm(self.words[F.pad(ids, (0, rows - n))] + self.places[:rows])
        for layer in self.layers:
            qkv = layer.qkv(x.to(self.dtype)).view(rows, 3, self.heads, -1).permute(1, 2, 0, 3)
            q, k, v = qkv[:, None]
            mixed = F.scaled_dot_product_attention(q, k[..., :n, :], v[..., :n, :])
            mixed = mixed[0].transpose(0, 1).flatten(1)
            x = layer.norm_attention(x + layer.out(mixed))
            x = layer.norm(x + layer.down(layer.up(x.to(self.dtype))))
        return x[:n]

    def _layer(self, module: Any) -> Layer:
        attention = module.attention.self
        parts = [attention.query, attention.key, attention.value]
        return Layer(
            Product.of(parts, self.dtype),
            Product.of([module.attention.output.dense], self.dtype),
            _norm(module.attention.output.LayerNorm),
            Product.of([module.intermediate.dense], self.dtype, "gelu"),
            Product.of([module.output.dense], self.dtype),
            _norm(module.output.LayerNorm),
        )

    @torch.no_grad()
    def _require_same(self, model: Any) -> None:
        ids = torch.tensor(_PROBE) % len(self.words)
        expected = model(input_ids=ids[None]).last_hidden_state[0].float()
        difference = (self(ids) - expected).norm() / expected.norm()
        if not difference < (1e-4 if self.dtype == torch.float32 else 0.03):
            raise ModelError("its states differ from those computed here")


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight.detach().float(), module.bias.detach().float(), module.eps)
