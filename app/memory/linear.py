"""Linear layers whose weights lie in memory as the processor's matrix kernels read them.

PyTorch's own product brings the weights into that form at every call. In float32, on one core with
AVX-512, doing it once makes products of 4 to 4,096 rows two to three times faster.
"""

import torch
from torch import Tensor, nn


class Laid(nn.Module):
    """A linear layer for inference on the CPU; its answers differ from the layer's by rounding."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


def lay(model: nn.Module) -> None:
    """Put every linear layer of a model in that form, where this PyTorch and device know one."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                setattr(parent, name, Laid(child))
