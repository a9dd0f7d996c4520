"""The sampler's log-probs stand for the old ones exactly where they are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gmpo.build.objective import can_reuse_logp, needs_old_logp
from gmpo.config import load

TOLERANCE = "actor_rollout_ref.rollout.log_prob_tolerance"


def test_reused_and_computed_old_log_probs_make_the_same_run(
    bench: Any, weights: Callable[[Path], dict[str, torch.Tensor]], lines: Callable[[Path], list[dict[str, Any]]]
) -> None:
    own = {"trainer.sample_groups": -1, "trainer.token_record_groups": 4}
    reused = bench.train(own, run="reused")
    computed = bench.train({**own, TOLERANCE: 0.0}, run="computed")
    assert [m["rollout/old_log_probs_reused"] for m in reused.history] == [1, 1]
    assert all("rollout/old_log_probs_reused" not in m for m in computed.history)
    for name, tensor in weights(computed.model).items():
        assert torch.allclose(weights(reused.model)[name], tensor, rtol=0, atol=1e-5), name
    for step in (1, 2):
        for a, b in zip(
            lines(reused.folder / "samples" / f"{step}.jsonl"),
            lines(computed.folder / "samples" / f"{step}.jsonl"),
            strict=True,
        ):
            assert a["output"] == b["output"]
            assert a["old_logp"] == a["rollout_logp"]
            assert b["old_logp"] == pytest.approx(b["rollout_logp"], abs=1e-5)
    # The probe's differences are reported, and they are rounding.
    assert 0 < reused.history[1]["training/rollout_logprobs_diff_max"] < 1e-5


def test_a_probe_that_finds_a_difference_brings_the_pass_back(bench: Any) -> None:
    history = bench.train({TOLERANCE: 1e-12}).history
    assert [m["rollout/old_log_probs_reused"] for m in history] == [0, 0]
    assert all(m["rollout_corr/kl"] != 0 for m in history)


def test_a_truncated_distribution_is_not_the_learners_so_its_log_probs_are_never_taken(bench: Any) -> None:
    own = {"actor_rollout_ref.rollout.top_k": 3, "algorithm.allow_truncated_sampling": True}
    assert [m["rollout/old_log_probs_reused"] for m in bench.train(own).history] == [0, 0]


@pytest.mark.parametrize(
    "own",
    [
        {"algorithm.rollout_correction.rollout_is": "token"},
        {"actor_rollout_ref.actor.entropy_quantile": 0.5},
        {"actor_rollout_ref.actor.ppo_mini_batch_size": 4},
    ],
)
def test_where_something_compares_the_policies_or_nothing_needs_them_there_is_no_probe(
    bench: Any, own: dict[str, Any]
) -> None:
    assert all("rollout/old_log_probs_reused" not in m for m in bench.train(own).history)


def test_a_sampler_with_weights_of_its_own_is_never_taken_at_its_word() -> None:
    config = load(["recipe=gmpo"]).config
    assert can_reuse_logp(config, shared_weights=True)
    assert not can_reuse_logp(config, shared_weights=False)
    assert not needs_old_logp(config, 1, shared_weights=True)
    assert needs_old_logp(config, 1, shared_weights=False)
