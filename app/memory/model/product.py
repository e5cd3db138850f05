"""Weights laid out in memory as the processor's matrix kernels read them.

PyTorch's own product converts the weights to that layout at every call. Converting them once makes
products of 2 to 4,096 rows two to three times faster in float32, and those of a question's few
tokens a third faster in bfloat16, on one core with AVX-512.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Then = Literal["none", "gelu"]
"""The function applied to each result of a product."""


@dataclass(frozen=True)
class Product:
    """A product with `weight` (outputs, inputs); `laid` is a copy of it in the kernels' layout."""

    weight: Tensor
    bias: Tensor | None
    laid: Tensor | None = None
    then: Then = "none"

    @classmethod
    def of(cls, parts: Sequence[nn.Linear], dtype: torch.dtype, then: Then = "none") -> "Product":
        """Combine layers that have the same input into one, in `dtype`."""
        weight = torch.cat([part.weight for part in parts]).detach().to(dtype)
        biases = [part.bias.detach().to(dtype) for part in parts if part.bias is not None]
        return cls(weight, torch.cat(biases) if biases else None, laid(weight), then)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, outputs)."""
        # The library computes a single row in another way, which may round differently.
        rows = x if len(x) > 1 else x.expand(2, -1)
        if self.laid is None:
            found = F.linear(rows, self.weight, self.bias)
            return (F.gelu(found) if self.then == "gelu" else found)[: len(x)]
        return multiply(rows, self.laid, self.bias, self.then)[: len(x)]


def rounded(rows: int) -> int:
    """Round a number of rows up, by at most an eighth (or 7 rows).

    For each number of rows and each shape of weights, the library builds new kernels (half a
    millisecond) and keeps them (half a megabyte). Rounding avoids this for every length of text.
    """
    step = max(8, 1 << max(0, rows.bit_length() - 4))
    return rows if rows <= 8 else -(-rows // step) * step


def laid(weight: Tensor) -> Tensor | None:
    """A copy of the weights (outputs, inputs) in the kernels' layout, for `multiply` only.

    None where this PyTorch, device or processor has no such layout for the weights' dtype.
    """
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if weight.dtype == torch.bfloat16:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
    elif weight.dtype != torch.float32:
        return None
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return found


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, then: Then = "none") -> Tensor:
    """Multiply x (..., inputs) by weights from `laid`, giving (..., outputs)."""
    way = "" if then == "none" else "none"  # exact gelu, without tanh approximation
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], way)
    return y
