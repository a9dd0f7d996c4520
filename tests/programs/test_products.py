"""The float32 products that a run's first start found fast are those of the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gmpo.backends import products
from gmpo.records.run_folder import read_run

FAST, SLOW = (1.0, 0.5), (1.0, 1.0)


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    yield
    products.use_product("highest", torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], None]:
    """Sets the seconds that are measured, for a model of any width and a processor of equal errors."""
    monkeypatch.setattr(products, "NARROW", 1)
    monkeypatch.setattr(products, "product_error", lambda precision: 1e-6)
    return lambda seconds: monkeypatch.setattr(products, "measured", lambda *_: seconds)


def in_effect(folder: Path) -> tuple[Any, Any, Mapping[str, Any]]:
    record = read_run(folder)
    assert record is not None
    kept = record.content["float32 products"]
    return kept["precision"], kept["attention_from"], json.loads((folder / "environment.json").read_text())["products"]


def test_a_resume_and_a_fork_take_the_products_of_the_first_start_whatever_the_clock_says(
    bench: Any, clock: Callable[[Mapping[str, Any]], None], weights: Callable[[Path], Mapping[str, torch.Tensor]]
) -> None:
    saved = {"trainer.save_freq": 1, "trainer.total_training_steps": 1}
    folder, whole = bench.folder / "run", bench.folder / "whole"
    clock({"products": FAST, "attention of 128 tokens": SLOW})
    bench.train(saved)
    assert in_effect(folder)[:2] == ("medium", None)
    assert in_effect(folder)[2]["products"] == {"default_ms": 1000.0, "onednn_ms": 500.0, "gain": 2.0}
    uninterrupted = bench.train({**saved, "trainer.total_training_steps": 2, "trainer.default_local_dir": str(whole)})
    clock({"products": SLOW, "attention of 128 tokens": FAST})
    resumed = bench.train({**saved, "trainer.total_training_steps": 2})
    assert in_effect(folder)[:2] == ("medium", None)
    assert "products" not in in_effect(folder)[2], "nothing was timed"
    record = read_run(folder)
    assert record is not None
    assert record.legs[-1].exact
    one, other = weights(uninterrupted.model), weights(resumed.model)
    assert all(torch.equal(one[name], other[name]) for name in one)

    fork = bench.folder / "fork"
    checkpoint = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(folder / "global_step_1")}
    bench.train({**saved, **checkpoint, "trainer.total_training_steps": 2, "trainer.default_local_dir": str(fork)})
    assert in_effect(fork)[:2] == ("medium", None)
    new = bench.folder / "new"
    bench.train({**saved, "trainer.default_local_dir": str(new)})
    assert in_effect(new)[:2] == ("highest", 128), "a run of its own is timed on its own"
