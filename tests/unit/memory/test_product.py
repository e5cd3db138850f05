"""Products with weights laid out for the processor: the same results, whatever their shape."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.memory.model.product import Product, Then, laid, multiply, rounded

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(33, 70), nn.Linear(33, 5)]


@pytest.mark.parametrize("rows", [1, 2, 23, 300])
@pytest.mark.parametrize("then", ["none", "gelu"])
@pytest.mark.parametrize("laid_out", [True, False])
@torch.no_grad()
def test_several_layers_of_one_input_are_one_product(
    layers: list[nn.Linear], dtype: torch.dtype, then: Then, rows: int, laid_out: bool
) -> None:
    made = Product.of(layers, dtype, then)
    if not laid_out:
        made = Product(made.weight, made.bias, None, then)
    x = torch.randn(rows, 33)
    expected = torch.cat([layer(x) for layer in layers], dim=1)
    got = made(x.to(dtype))
    assert (got.dtype, got.shape) == (dtype, (rows, 75))
    exact = dtype == torch.float32
    torch.testing.assert_close(
        got.float(),
        F.gelu(expected) if then == "gelu" else expected,
        rtol=1e-5 if exact else 2e-2,
        atol=1e-5 if exact else 2e-2,
    )
    across = torch.randn(33, rows).T.to(dtype)
    torch.testing.assert_close(made(across), made(across.contiguous()))


@torch.no_grad()
def test_layers_without_a_bias_have_none() -> None:
    layer = nn.Linear(8, 4, bias=False)
    made = Product.of([layer], torch.float32)
    assert made.bias is None
    x = torch.randn(3, 8)
    torch.testing.assert_close(made(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_have_no_such_form(dtype: torch.dtype) -> None:
    assert laid(torch.zeros(4, 4, dtype=dtype)) is None


@torch.no_grad()
def test_a_product_is_near_the_exact_one(dtype: torch.dtype) -> None:
    weight, x, bias = torch.randn(96, 64).to(dtype), torch.randn(23, 64).to(dtype), torch.randn(96)
    form = laid(weight)
    if form is None:
        pytest.skip("this processor has no products of that type")
    got = multiply(x, form, bias.to(dtype)).double()
    exact = x.double() @ weight.double().T + bias.to(dtype).double()
    assert (got - exact).norm() / exact.norm() < (1e-6 if dtype == torch.float32 else 5e-3)


def test_without_the_kernels_there_is_no_such_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert laid(torch.zeros(4, 4)) is None


def test_few_numbers_of_rows_stand_for_all_with_little_more_to_compute() -> None:
    found = [rounded(rows) for rows in range(1, 4097)]
    assert found[:8] == list(range(1, 9))
    assert all(rows <= more <= max(rows + 7, rows * 9 / 8) for rows, more in enumerate(found, 1))
    assert len(set(found)) == 63
    assert found == sorted(found)
    assert [rounded(more) for more in found] == found
