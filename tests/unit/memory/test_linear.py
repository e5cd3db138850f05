"""Linear layers laid out for the processor: the same products, whatever their shape."""

import copy

import pytest
import torch
from torch import nn

from app.memory.linear import Laid, lay


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.Linear(70, 33, bias=False)).eval()


@pytest.mark.parametrize("shape", [(1, 33), (2, 33), (23, 33), (300, 33), (3, 5, 33), (1, 1, 33)])
@torch.no_grad()
def test_the_products_are_those_of_the_layers(model: nn.Module, shape: tuple[int, ...]) -> None:
    laid = copy.deepcopy(model)
    lay(laid)
    x = torch.randn(shape)
    assert laid(x).shape == shape
    torch.testing.assert_close(laid(x), model(x), rtol=1e-5, atol=1e-5)
    across = torch.randn(*reversed(shape)).permute(*reversed(range(len(shape))))
    torch.testing.assert_close(laid(across), model(across), rtol=1e-5, atol=1e-5)


def test_every_linear_layer_is_laid_and_nothing_else(model: nn.Module) -> None:
    class Own(nn.Linear):
        """Of a class that may mean something else."""

    whole = nn.Sequential(model, Own(33, 33), nn.LayerNorm(33))
    lay(whole)
    kinds = [type(part) for part in whole.modules() if not isinstance(part, nn.Sequential)]
    assert kinds == [Laid, nn.GELU, Laid, Own, nn.LayerNorm]


@torch.no_grad()
def test_without_the_kernels_the_model_stays(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    lay(model)
    assert not any(isinstance(part, Laid) for part in model.modules())
