"""What every test shares: one thread, property tests that draw the same examples each time, and a tiny real model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

# Kernels run on the CPU, unless `make test-cuda` says otherwise. Triton reads it when it is imported, as torch may do.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gmpo.backends.devices import Device
from gmpo.backends.models import ModelSource, load_model
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.problems import Problem
from gmpo.records.batch import Batch, collate
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.verdict import Grade, Verdict

collect_ignore = ["browser"]
"""What needs a browser has an environment of its own: `make test-browser`."""

torch.set_num_threads(1)
NO_CUDA = (
    "torch sees no CUDA device here"
    if not torch.cuda.is_available()
    else "Triton's kernels are interpreted in this process: make test-cuda"
    if os.environ["TRITON_INTERPRET"] != "0"
    else None
)
settings.register_profile("gmpo", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("gmpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of a GPU out where there is none."""
    for item in items if NO_CUDA else ():
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of 4 special tokens (ids 0 to 3: 0 pads, 1 ends an answer) and 28 words (ids 4 to 31)."""
    return word_tokenizer([f"w{i}" for i in range(28)])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face folder with a two-layer Qwen3 of 32 tokens and random weights. Tests read it and never write."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder, words, seed=0, hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=64)
    return folder


@pytest.fixture(scope="session")
def sharpened() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Draw a fresh model's matrices anew, in place, with standard deviation 0.15.

    Fresh weights are so small that a wrong position or mask would hardly show: attention adds next to nothing, and
    every token is about as probable as any other.
    """

    def sharpen(model: PreTrainedModel) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15, generator=generator)
        return model

    return sharpen


@pytest.fixture
def fresh_policy(
    tiny_folder: Path, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> Callable[[], PreTrainedModel]:
    """Makes copies of one policy: the tiny model with weights that matter."""
    return lambda: sharpened(load_model(ModelSource(str(tiny_folder)), torch.device("cpu")))


@pytest.fixture(scope="session")
def as_batch() -> Callable[[Sequence[tuple[Sequence[int], Sequence[Completion]]]], Batch]:
    """Sampled answers to prompts, ungraded, as the learner's tensors."""
    problem = Problem("p", ({"role": "user", "content": "?"},), "s", "1")

    def build(sampled: Sequence[tuple[Sequence[int], Sequence[Completion]]]) -> Batch:
        groups = [
            Group(problem, tuple(prompt), tuple(Graded(c, "", Grade(Verdict.WRONG, 0.0), 0.0) for c in completions))
            for prompt, completions in sampled
        ]
        return collate(groups, pad_id=0)

    return build


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded by `record_property`: tables that people read."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for title, text in report.user_properties if report.when == "call" else ():
            terminalreporter.section(title)
            terminalreporter.write_line(str(text))
