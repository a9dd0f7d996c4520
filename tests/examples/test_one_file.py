"""The one-file example teaches what the package does: same loss, same gradient, same advantage; and it learns."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gmpo.algo.advantages import grpo
from gmpo.algo.masks import count, sequence_aggregate
from gmpo.algo.sequence_losses import geo_mean

FILE = Path(__file__).parents[2] / "examples" / "gmpo_in_one_file.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gmpo_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its own annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clip", [0.0, 0.4, 100.0])
def test_its_loss_and_gradient_are_the_package_s(example: ModuleType, seed: int, clip: float) -> None:
    """Ragged answers, one of them empty, advantages of both signs and one of 0; log-ratios beyond the clip."""
    draw = torch.Generator().manual_seed(seed)
    rows, width = 7, 9
    lengths = torch.randint(1, width + 1, (rows,), generator=draw)
    lengths[3] = 0
    mask = torch.arange(width) < lengths.unsqueeze(1)
    old = -3.0 * torch.rand(rows, width, generator=draw, dtype=torch.float64)
    logp = (old + 0.8 * torch.randn(rows, width, generator=draw, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(rows, generator=draw, dtype=torch.float64)
    advantage[:3] = torch.tensor([1.0, -1.0, 0.0])

    own = example.gmpo_loss(logp, old, advantage, mask, clip)
    (own_gradient,) = torch.autograd.grad(own, logp)
    surrogate = geo_mean(logp, old, advantage.unsqueeze(1).expand(rows, width), mask, clip_low=clip, clip_high=clip)
    package = sequence_aggregate(surrogate.values, mask, count(mask))
    (package_gradient,) = torch.autograd.grad(package, logp)

    torch.testing.assert_close(own, package, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(own_gradient, package_gradient, rtol=1e-13, atol=1e-15)
    assert package_gradient.abs().sum() > 0
    assert bool((surrogate.clipped | surrogate.clipped_lower).any()) == (clip < 100.0)


def test_its_advantage_is_the_package_s(example: ModuleType) -> None:
    rewards = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.5, 0.5], dtype=torch.float64)
    own = example.group_advantage(rewards, 3)
    package = grpo(
        rewards.unsqueeze(1), torch.ones(6, 1, dtype=torch.bool), torch.arange(6) // 3, normalise_by_std=True
    )
    torch.testing.assert_close(own, package.squeeze(1), rtol=1e-12, atol=0.0)
    assert own[3:].tolist() == [0.0, 0.0, 0.0]


def test_its_rule_counts_matching_positions(example: ModuleType) -> None:
    end = example.END
    assert example.score([7, 2, example.EQUALS], [2, 7, end]) == 1.0
    assert example.score([4, 4, example.EQUALS], [4, end]) == 1.0
    assert example.score([7, 2, example.EQUALS], [2, 7, 7, 7]) == 2 / 4
    assert example.score([7, 2, example.EQUALS], [end]) == 0.0


def test_its_learner_reads_the_log_probs_that_its_sampler_drew_from(example: ModuleType) -> None:
    """So every ratio is 1 at the first update of a rollout, and behind the end token nothing is in the mask."""
    draw = torch.Generator().manual_seed(0)
    policy = example.make_policy(0)
    rollout = example.sample(policy, example.make_prompts(4, draw), 3, draw)
    logp = example.answer_logp(policy, rollout.tokens).detach()
    torch.testing.assert_close(logp[rollout.mask], rollout.old_logp[rollout.mask], rtol=0.0, atol=1e-5)
    answers = rollout.tokens[:, example.PROMPT :]
    ended = (answers == example.END).cumsum(1) - (answers == example.END).int() > 0
    assert torch.equal(rollout.mask, ~ended)
    assert ended.any()


def test_it_learns(example: ModuleType) -> None:
    history = example.train(steps=20, prompts=32, every=1000)
    assert sum(history[-3:]) > 2 * sum(history[:3])


def test_it_needs_nothing_of_the_package_and_stays_short() -> None:
    source = FILE.read_text()
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}
    assert len(source.splitlines()) <= 250
