"""A decoder's layers of the Llama shape: their weights, and what is refused as another shape."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.errors import ModelError
from app.memory.model.load import LanguageModel
from app.memory.model.product import Product


@dataclass(frozen=True)
class Layer:
    """Products with the same input are one: rows of q, k and v, and of gate and up."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    norm_in: Tensor
    norm_mid: Tensor
    norm_q: Tensor | None
    norm_k: Tensor | None
    rotary: bool


def layer_of(module: Any) -> Layer:
    """A decoder layer's weights, joined. Raises ModelError that says where it differs."""
    require_parts(module, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
    attention, mlp = module.self_attn, module.mlp
    require_parts(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
    require_parts(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
    sample = torch.linspace(-3, 3, 7)
    if not torch.allclose(mlp.act_fn(sample), F.silu(sample)):
        raise ModelError("its activation is not SiLU")
    norm_q, norm_k = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return Layer(
        _joined(attention, "q_proj", "k_proj", "v_proj"),
        _joined(attention, "o_proj"),
        _joined(mlp, "gate_proj", "up_proj"),
        _joined(mlp, "down_proj"),
        norm_in=module.input_layernorm.weight,
        norm_mid=module.post_attention_layernorm.weight,
        norm_q=None if norm_q is None else norm_q.weight,
        norm_k=None if norm_k is None else norm_k.weight,
        rotary=bool(getattr(attention, "use_rope", True)),
    )


def require_parts(
    module: nn.Module, needed: set[str], known: AbstractSet[str] = frozenset()
) -> None:
    """Raises ModelError unless a module has the parts `needed`, and besides only `known` ones."""
    parts = {name for name, _ in module.named_children()}
    if odd := (needed - parts) | (parts - needed - known):
        raise ModelError(f"its {type(module).__name__} differs in {', '.join(sorted(odd))}")


def _joined(module: Any, *names: str) -> Product:
    """Several products as one, of whose weights the module's own become views."""
    parts = [linear_of(module, name) for name in names]
    if len({part.bias is None for part in parts}) > 1:
        raise ModelError(f"only some of its {', '.join(names)} have a bias")
    made = Product.of(parts, parts[0].weight.dtype)
    views = torch.split(made.weight, [len(part.weight) for part in parts])
    for part, rows in zip(parts, views, strict=True):
        part.weight.data = rows
    return made


def linear_of(module: Any, name: str) -> nn.Linear:
    """A plain linear layer by its name. Raises ModelError for any other kind of module."""
    part = getattr(module, name, None)
    if type(part) is not nn.Linear:  # an adapter's or a quantised one is another class
        raise ModelError(f"its {name} is {type(part).__name__}")
    return part


def require_plain(lm: LanguageModel) -> None:
    """Raises ModelError for what a probe of a few tokens would not show."""
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (window and window < config.max_position_embeddings):
        raise ModelError("not all of its layers attend to everything")
    if getattr(lm.decoder.rotary_emb, "rope_type", "") not in ("default", "linear", "llama3"):
        raise ModelError("its rotary angles change with the length of the text")
    norms = [m for m in lm.decoder.modules() if hasattr(m, "variance_epsilon")]
    if len({norm.variance_epsilon for norm in norms}) != 1:
        raise ModelError("its norms differ")
    shapes = {tuple(p.shape for p in layer.parameters()) for layer in lm.decoder.layers}
    if len(shapes) != 1:
        raise ModelError("its layers differ in shape")
