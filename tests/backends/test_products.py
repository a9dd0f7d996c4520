"""The float32 product is chosen by its error, measured, and never by a name or a clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gmpo.backends import products
from gmpo.backends.products import Product, product_error, use_product

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_the_default_product_has_the_rounding_of_float32() -> None:
    assert 1e-7 < product_error("highest") < 1e-5
    assert torch.get_float32_matmul_precision() == "highest", "measuring changes nothing"


def test_a_product_in_bfloat16_would_be_seen() -> None:
    """What oneDNN does on processors with matrix units: the measure is a thousand times the default's."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 1024, generator=generator), torch.randn(1024, 256, generator=generator)
    exact = a.double() @ b.double()
    low = (a.bfloat16() @ b.bfloat16()).double()
    error = float((low - exact).abs().max() / exact.square().mean().sqrt())
    assert error > 100 * products.ALLOWED * product_error("highest")


@pytest.mark.parametrize(("other", "chosen"), [(3.9e-6, "medium"), (4.1e-6, "highest"), (2e-3, "highest")])
def test_auto_takes_onednns_product_where_its_error_is_float32s(
    monkeypatch: pytest.MonkeyPatch, other: float, chosen: str
) -> None:
    monkeypatch.setattr(products, "product_error", {"highest": 1e-6, "medium": other}.__getitem__)
    product = use_product("auto", CPU)
    assert product == Product(chosen, (1e-6, other))
    assert torch.get_float32_matmul_precision() == chosen
    assert f"{other:.0e}" in str(product)


def test_on_this_processor_auto_never_costs_accuracy() -> None:
    use_product("auto", CPU)
    assert product_error(torch.get_float32_matmul_precision()) < 1e-5


@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_a_setting_is_obeyed_and_nothing_measured(setting: str) -> None:
    assert use_product(setting, CPU) == Product(setting)
    assert torch.get_float32_matmul_precision() == setting


def test_auto_leaves_other_devices_with_the_default() -> None:
    assert use_product("auto", torch.device("cuda")) == Product("highest")
