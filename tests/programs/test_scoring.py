"""The sampler's log-probs stand for the old ones exactly where they are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.build.run import build_scoring
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
    assert any(m["rollout_corr/kl"] != 0 for m in history)  # rounding may cancel in one step


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


def test_a_sampler_with_weights_of_its_own_is_never_taken_at_its_word(
    fresh_policy: Callable[[], PreTrainedModel], cpu: Device
) -> None:
    """What is computed where a step makes one update, and where it makes four."""

    def computed(own: PreTrainedModel | None, updates: int) -> tuple[bool, bool]:
        sampler = TorchSampler(device=cpu, seed=0, stop_ids=frozenset({1}), max_num_seqs=4, model=own)
        sizes = ["data.train_batch_size=8", f"actor_rollout_ref.actor.ppo_mini_batch_size={8 // updates}"]
        scoring = build_scoring(load(["recipe=gmpo", *sizes]).config, None, sampler)  # type: ignore[arg-type]
        return scoring.old, scoring.tolerance > 0

    assert computed(None, 1) == (False, True)
    assert computed(None, 4) == (True, True)
    assert computed(fresh_policy(), 1) == (True, False)
    assert computed(fresh_policy(), 4) == (True, False)
