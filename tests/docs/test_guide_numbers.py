"""The figures that the guides give as examples are what they say, and the picture shows what the losses do."""

from __future__ import annotations

import importlib.util
from math import exp, log, prod
from pathlib import Path
from types import ModuleType

import pytest

from gmpo.data.catalogue import PUBLISHED

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "examples" / "gmpo_trainer" / name for name in ("README.md", "README_CN.md")]


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("token_weights", ROOT / "benchmarks" / "token_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arithmetic(ratios: list[float]) -> float:
    return sum(ratios) / len(ratios)


def geometric(ratios: list[float]) -> float:
    return prod(ratio ** (1 / len(ratios)) for ratio in ratios)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("1.49", arithmetic([1.0] * 99 + [50.0])),
        ("1.04", geometric([1.0] * 99 + [50.0])),
        ("1.005", arithmetic([1.0] * 99 + [exp(0.4)])),
        ("1.004", geometric([1.0] * 99 + [exp(0.4)])),
        ("1.492", exp(0.4)),
        ("0.670", exp(-0.4)),
        ("59 %", 100 * (0.9**5 + 0.1**5)),
        ("43 %", 100 * (0.9**8 + 0.1**8)),
        ("19 %", 100 * (0.9**16 + 0.1**16)),
    ],
)
def test_the_examples_of_the_guide_are_right(guide: Path, shown: str, value: float) -> None:
    digits = len(shown.removesuffix(" %").partition(".")[2])
    assert f"{value:.{digits}f}" == shown.removesuffix(" %")
    assert shown in guide.read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.name)
def test_the_steps_of_the_guide_are_those_of_the_published_data(guide: Path) -> None:
    text = guide.read_text(encoding="utf-8")
    problems = PUBLISHED["gsm8k"].splits["train"] + PUBLISHED["math"].splits["train"]
    assert (f"{problems:,}", problems // 1024, 15 * (problems // 1024)) == ("14,973", 14, 210)
    assert PUBLISHED["dapo_math_17k"].splits["train"] // 512 == 34
    for figure in ("14,973", " 14 ", " 210 ", " 34 "):
        assert figure in text


def test_an_outlier_weighs_its_ratio_under_grpo_and_its_neighbours_weight_under_gmpo(picture: ModuleType) -> None:
    grpo, gmpo = picture.OBJECTIVES
    assert picture.weights(grpo, log(2.9), -1.0) == pytest.approx((2.9, 1.0))
    assert picture.weights(grpo, log(3.1), -1.0) == (0.0, pytest.approx(1.0))
    assert picture.weights(gmpo, log(2.9), -1.0) == pytest.approx((2.9**0.01, 2.9**0.01))
    assert picture.weights(gmpo, 0.39, 1.0) == pytest.approx((exp(0.0039), exp(0.0039)))
    assert picture.weights(gmpo, 0.41, 1.0) == (0.0, pytest.approx(exp(0.004)))
