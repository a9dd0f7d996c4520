"""The float32 product is chosen by its error and by its speed for the model at hand; attention has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from gmpo.backends import prefix_attention, products
from gmpo.backends.devices import Device
from gmpo.backends.packed import response_hidden, share_prefixes
from gmpo.backends.products import (
    Product,
    Shapes,
    attention_product,
    measured,
    product_error,
    product_of,
    shapes_of,
    use_product,
)
from gmpo.records.rollout import Completion

CPU = torch.device("cpu")
SHAPES = Shapes(((96, 64, 1), (64, 96, 2)), heads=2, key_heads=1, head_width=16, layers=1, longest=300, apart=True)
SLOW, FAST = (1.0, 1.0 / 1.19), (1.0, 1.0 / 1.21)
"""On both sides of `products.GAIN`."""


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    use_product("highest", CPU)
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what is measured: oneDNN's error where the default's is 1e-6, and the seconds."""

    def set_(error: float, **seconds: tuple[float, float]) -> None:
        monkeypatch.setattr(products, "product_error", {"highest": 1e-6, "medium": error}.__getitem__)
        named = {"products": seconds.pop("all"), **{f"attention of {k[1:]} tokens": v for k, v in seconds.items()}}
        monkeypatch.setattr(products, "measured", lambda *_: named)

    return set_


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


@pytest.mark.parametrize(
    ("error", "seconds", "chosen"),
    [(3.9e-6, FAST, "medium"), (3.9e-6, SLOW, "highest"), (4.1e-6, FAST, "highest"), (2e-3, FAST, "highest")],
)
def test_auto_takes_onednns_product_where_it_is_float32_and_faster(
    found: Callable[..., None], error: float, seconds: tuple[float, float], chosen: str
) -> None:
    found(error, all=seconds)
    product = use_product("auto", CPU, SHAPES)
    assert product == Product(chosen)
    assert torch.get_float32_matmul_precision() == chosen
    assert product.report()["errors"] == {"default": 1e-6, "onednn": error}


@pytest.mark.parametrize(
    ("seconds", "attention_from"),
    [
        ({"a128": SLOW, "a256": FAST, "a512": FAST}, 256),
        ({"a128": FAST, "a256": SLOW, "a512": FAST}, 512),  # only what is faster at every greater length as well
        ({"a128": FAST, "a256": FAST, "a512": SLOW}, None),
    ],
)
def test_attention_takes_it_from_the_length_on_at_which_it_is_faster(
    found: Callable[..., None], seconds: dict[str, tuple[float, float]], attention_from: int | None
) -> None:
    found(1e-6, all=SLOW, **seconds)
    assert use_product("auto", CPU, SHAPES) == Product("highest", attention_from)
    for length in (1, 128, 256, 512, 9999):
        with attention_product(length):
            other = attention_from is not None and length >= attention_from
            assert torch.get_float32_matmul_precision() == ("medium" if other else "highest")
        assert torch.get_float32_matmul_precision() == "highest"


def test_attention_keeps_the_default_while_the_products_around_it_do_not() -> None:
    use_product("medium", CPU)
    with attention_product(4096):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError), product_of("highest"):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "medium", "also after an error"


def test_attention_of_a_policy_runs_in_its_own_product_forward_and_backward(
    fresh_policy: Callable[[], Any], as_batch: Callable[[Sequence[Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}

    def watch(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return fn(*args, **kwargs)

        return call

    model, device = fresh_policy(), Device(CPU, torch.float32)
    assert share_prefixes(model, device) is None
    batch = as_batch([([4, 5, 6], [Completion((7, 8, 9), (-1.0,) * 3, "stop", (0, 0))])])
    for name in ("_attend", "_attend_backward"):
        monkeypatch.setattr(prefix_attention, name, watch(name, getattr(prefix_attention, name)))
    monkeypatch.setattr(F, "linear", watch("linear", F.linear))
    use_product("medium", CPU)
    response_hidden(model, batch, device, mask=batch.sampled_mask).sum().backward()
    assert seen == {"_attend": {"highest"}, "_attend_backward": {"highest"}, "linear": {"medium"}}


def test_what_an_earlier_start_chose_is_taken_again_and_nothing_is_timed(found: Callable[..., None]) -> None:
    found(1e-6, all=FAST)
    kept = {"precision": "highest", "attention_from": 256}
    product = use_product("auto", CPU, SHAPES, kept)
    assert product == Product("highest", 256)
    assert product.kept == kept
    assert not product.seconds


def test_a_kept_choice_is_given_up_where_this_processor_would_round_to_bfloat16(found: Callable[..., None]) -> None:
    found(2e-3, all=FAST)
    assert use_product("auto", CPU, SHAPES, {"precision": "medium", "attention_from": 128}) == Product("highest")


def test_narrow_models_are_not_timed(found: Callable[..., None]) -> None:
    found(1e-6, all=FAST)
    narrow = Shapes(((63, 256, 1), (256, 63, 1)), 2, 1, 16, 1, 300, True)
    assert use_product("auto", CPU, narrow) == use_product("auto", CPU, None) == Product("highest")


@pytest.mark.parametrize("apart", [True, False])
def test_measuring_names_what_it_timed_and_touches_neither_the_setting_nor_the_random_stream(apart: bool) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    shapes = Shapes(SHAPES.products, 2, 1, 16, 1, 300, apart)
    times = measured.__wrapped__(shapes, 1)
    attention = {"attention of 128 tokens", "attention of 256 tokens"} if apart else set()
    assert times.keys() == {"products", *attention}
    assert all(0 < second < 60 for pair in times.values() for second in pair)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == "highest"
    assert measured(SHAPES, 1) is measured(SHAPES, 1), "one process chooses once"


def test_shapes_are_those_of_the_modules() -> None:
    config = LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        head_dim=32, vocab_size=500,
    )  # fmt: skip
    shapes = shapes_of(config, 700, apart=True)
    assert shapes is not None
    # q 96 -> 192, k and v 96 -> 64, o 192 -> 96, gate and up 96 -> 160, down 160 -> 96, head 96 -> 500
    assert set(shapes.products) == {(96, 192, 3), (96, 64, 6), (192, 96, 3), (96, 160, 6), (160, 96, 3), (96, 500, 1)}
    assert (shapes.heads, shapes.key_heads, shapes.head_width, shapes.layers) == (6, 2, 32, 3)


@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_a_setting_is_obeyed_and_nothing_measured(setting: str) -> None:
    product = use_product(setting, CPU, SHAPES)
    assert product == Product(setting)
    assert product.errors is None
    assert torch.get_float32_matmul_precision() == setting


def test_auto_leaves_other_devices_with_the_default() -> None:
    assert use_product("auto", torch.device("cuda"), SHAPES) == Product("highest")
