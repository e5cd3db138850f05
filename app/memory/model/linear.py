"""Weights that lie in memory as the processor's matrix kernels read them.

PyTorch's own product brings the weights into that form at every call. Doing it once makes products
of 2 to 4,096 rows two to three times faster in float32, and those of a question's few tokens a
third faster in bfloat16, on one core with AVX-512.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Then = Literal["none", "gelu"]
"""What is done to each result of a product."""


@dataclass(frozen=True)
class Linear:
    """A product with weights (outputs, inputs). laid: these once more, as the kernels read them."""

    weight: Tensor
    bias: Tensor | None
    laid: Tensor | None = None
    then: Then = "none"

    @classmethod
    def of(cls, parts: Sequence[nn.Linear], dtype: torch.dtype, then: Then = "none") -> "Linear":
        """Several layers of one input as one, in `dtype`."""
        weight = torch.cat([part.weight for part in parts]).detach().to(dtype)
        biases = [part.bias.detach().to(dtype) for part in parts if part.bias is not None]
        return cls(weight, torch.cat(biases) if biases else None, laid(weight), then)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, outputs)."""
        # A row alone goes another way through the library, which may round otherwise.
        rows = x if len(x) > 1 else x.expand(2, -1)
        if self.laid is None:
            found = F.linear(rows, self.weight, self.bias)
            return (F.gelu(found) if self.then == "gelu" else found)[: len(x)]
        return product(rows, self.laid, self.bias, self.then)[: len(x)]


def rounded(rows: int) -> int:
    """A number of rows to compute instead of `rows`, at most an eighth more (or 7).

    For each number the library builds kernels anew (half a millisecond) and keeps them (half a
    megabyte), for each shape of weights: so not for every length of a text.
    """
    step = max(8, 1 << max(0, rows.bit_length() - 4))
    return rows if rows <= 8 else -(-rows // step) * step


def laid(weight: Tensor) -> Tensor | None:
    """A copy of the weights (outputs, inputs) in that form, for `product` alone.

    None where this PyTorch, device or processor knows none for their type.
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


def product(x: Tensor, weight: Tensor, bias: Tensor | None, then: Then = "none") -> Tensor:
    """(..., inputs) and weights that are `laid` -> (..., outputs)."""
    way = "" if then == "none" else "none"  # of gelu: the exact one
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], way)
    return y
