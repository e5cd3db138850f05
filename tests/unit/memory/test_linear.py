"""Linear layers laid out for the processor: the same products, whatever their shape."""

import copy

import pytest
import torch
from torch import nn

from app.memory.linear import Laid, laid, lay, product


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.Linear(70, 33, bias=False)).eval()


@pytest.mark.parametrize("shape", [(1, 33), (2, 33), (23, 33), (300, 33), (3, 5, 33), (1, 1, 33)])
@torch.no_grad()
def test_the_products_are_those_of_the_layers(model: nn.Module, shape: tuple[int, ...]) -> None:
    changed = copy.deepcopy(model)
    lay(changed)
    x = torch.randn(shape)
    assert changed(x).shape == shape
    torch.testing.assert_close(changed(x), model(x), rtol=1e-5, atol=1e-5)
    across = torch.randn(*reversed(shape)).permute(*reversed(range(len(shape))))
    torch.testing.assert_close(changed(across), model(across), rtol=1e-5, atol=1e-5)


def test_every_linear_layer_is_laid_and_nothing_else(model: nn.Module) -> None:
    class Own(nn.Linear):
        """Of a class that may mean something else."""

    whole = nn.Sequential(model, Own(33, 33), nn.LayerNorm(33))
    lay(whole)
    kinds = [type(part) for part in whole.modules() if not isinstance(part, nn.Sequential)]
    assert kinds == [Laid, nn.GELU, Laid, Own, nn.LayerNorm]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_have_no_such_form(dtype: torch.dtype) -> None:
    assert laid(torch.zeros(4, 4, dtype=dtype)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_product_is_near_the_exact_one(dtype: torch.dtype) -> None:
    weight, x, bias = torch.randn(96, 64).to(dtype), torch.randn(23, 64).to(dtype), torch.randn(96)
    form = laid(weight)
    if form is None:
        pytest.skip("this processor has no products of that type")
    got = product(x, form, bias.to(dtype)).double()
    exact = x.double() @ weight.double().T + bias.to(dtype).double()
    assert (got - exact).norm() / exact.norm() < (1e-6 if dtype == torch.float32 else 5e-3)


@torch.no_grad()
def test_without_the_kernels_the_model_stays(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    lay(model)
    assert not any(isinstance(part, Laid) for part in model.modules())
