"""What a configuration asks for is said once: rules, memory estimate and programs follow the same answer."""

from __future__ import annotations

import itertools

import pytest

from gmpo.build.objective import build_credit, build_objective
from gmpo.check.memory import estimate
from gmpo.check.model_shapes import SHAPES
from gmpo.config import Config, Resolved, load

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
REF = "actor_rollout_ref.ref"
C = "algorithm.rollout_correction"
G = "algorithm.filter_groups"
LOSS = f"{A}.policy_loss.loss_mode"
SIZE, TOLERANCE = f"{R}.log_prob_micro_batch_size_per_gpu", f"{R}.log_prob_tolerance"
STALE = (f"{G}.enable=True", f"{G}.max_staleness=1")
BYPASS, ONE_UPDATE = f"{C}.bypass_mode=True", f"{A}.ppo_mini_batch_size=1024"


def loaded(*overrides: str) -> Resolved[Config]:
    return load(overrides)


def inert(*overrides: str) -> set[str]:
    return {note.path for note in load(overrides).inert}


@pytest.mark.parametrize("coefficient", [0, 0.1])
@pytest.mark.parametrize(("in_loss", "in_reward"), list(itertools.product([False, True], repeat=2)))
def test_a_reference_is_estimated_and_its_keys_have_effect_exactly_where_the_program_loads_one(
    in_loss: bool, in_reward: bool, coefficient: float
) -> None:
    """With use_kl_loss=True and kl_loss_coef=0 the check showed a reference that no run has."""
    resolved = loaded(
        f"{A}.use_kl_loss={in_loss}",
        f"{A}.kl_loss_coef={coefficient}",
        f"algorithm.use_kl_in_reward={in_reward}",
        f"{REF}.model.path=other",
    )
    config = resolved.config
    objective, credit = build_objective(config, 1), build_credit(config)
    compares = objective.kl_coef > 0 or credit.reward_kl is not None
    assert compares == config.uses_reference == ((in_loss and coefficient > 0) or in_reward)
    assert any(item.name == "reference" for item in estimate(config, SHAPES["qwen2.5-7b"])) == compares
    assert (f"{REF}.model.path" in resolved.honoured) == compares


def test_a_kl_term_of_weight_0_is_no_term() -> None:
    """Neither for its own keys nor for the average that it would be taken with."""
    given = (f"{A}.use_kl_loss=True", f"{A}.kl_loss_type=k2", "recipe=gmpo", f"{A}.loss_agg_mode=seq-mean-token-sum")
    assert inert(*given) == set()
    assert inert(*given, f"{A}.kl_loss_coef=0") == {
        f"{A}.use_kl_loss",
        f"{A}.kl_loss_type",
        f"{A}.loss_agg_mode",
    }


@pytest.mark.parametrize("settings", [[], [ONE_UPDATE], [BYPASS]], ids=["several updates", "one update", "bypass"])
@pytest.mark.parametrize(
    "needs",
    [(), ("algorithm.use_kl_in_reward=True",), STALE, (f"{A}.entropy_quantile=0.8",), (f"{C}.rollout_rs=token_k3",)],
    ids=["", "kl in reward", "groups that waited", "entropies", "rejection"],
)
def test_the_keys_of_the_pass_for_old_log_probs_have_effect_exactly_where_it_is_made(
    settings: list[str], needs: tuple[str, ...]
) -> None:
    threshold = [f"{C}.rollout_rs_threshold=0.1"] if "token_k3" in "".join(needs) else []
    resolved = loaded(*settings, *needs, *threshold, f"{SIZE}=16", f"{TOLERANCE}=0.1")
    made = bool(needs) or not settings
    assert resolved.config.needs_old_logp == made
    assert (SIZE in resolved.honoured) == made
    reused = made and not (set(needs) - {"algorithm.use_kl_in_reward=True"})
    assert (TOLERANCE in resolved.honoured) == reused == (made and resolved.config.can_reuse_logp)


@pytest.mark.parametrize("setting", [BYPASS, ONE_UPDATE])
def test_a_loss_that_chooses_its_tokens_makes_such_a_pass_of_its_own(setting: str) -> None:
    assert SIZE in inert(setting, f"{SIZE}=16", f"{LOSS}=vanilla")
    assert SIZE not in inert(setting, f"{SIZE}=16", f"{LOSS}=clip_cov")


@pytest.mark.parametrize("correction", [f"{C}.rollout_is=token", f"{C}.icepop=[0.5,5]", f"{C}.preset=decoupled_geo_rs"])
def test_groups_that_waited_are_warned_of_unless_something_corrects_for_them(correction: str) -> None:
    path = f"{G}.max_staleness"
    assert path in {note.path for note in loaded(*STALE).warnings}
    assert path not in {note.path for note in loaded(*STALE, correction).warnings}


def test_the_samplers_cache_is_that_of_a_round_of_sampling() -> None:
    """4 problems x 2 answers are sampled at once, however many groups make a step."""
    config = loaded(f"{R}.n=2", f"{G}.enable=True", "data.gen_batch_size=4").config
    cache = next(i for i in estimate(config, SHAPES["qwen2.5-7b"]) if i.name == "key-value cache")
    assert cache.formula.startswith("8 answers x ")
