"""Which estimator goes with which loss, what each leaves without effect, and what surprises about their bounds."""

from __future__ import annotations

import itertools

import pytest

from gmpo.config import load
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS
from gmpo.config.tree import get
from gmpo.errors import ConfigError
from gmpo.objectives import ESTIMATORS, LOSSES

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
P = f"{A}.policy_loss"
ESTIMATOR, LOSS = "algorithm.adv_estimator", f"{P}.loss_mode"
TRUNCATION = "algorithm.allow_truncated_sampling"


def inert(*overrides: str) -> set[str]:
    return {note.path for note in load(overrides).inert}


def warned(*overrides: str) -> dict[str, str]:
    return {note.path: note.reason for note in load(overrides).warnings}


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    message = str(caught.value)
    assert message.startswith("1 problem in the configuration:")
    return message


# --- estimator x loss --------------------------------------------------------------------------------------------


def asked(estimator: str) -> tuple[str, ...]:
    """An estimator, with two rewards where it takes several."""
    keys = ("algorithm.gdpo_reward_keys=[one,other]",) if ESTIMATORS[estimator].needs_components else ()
    return (f"{ESTIMATOR}={estimator}", *keys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "must name the rewards that algorithm.adv_estimator=gdpo normalises one by one"),
        (["algorithm.gdpo_reward_keys=[a,b,a]"], "names a reward twice"),
        (["algorithm.gdpo_reward_keys=[a,b]", "algorithm.gdpo_reward_weights=[1.0]"], "has 1 numbers, and"),
    ],
)
def test_rewards_of_gdpo_that_cannot_be_meant_are_refused(words: list[str], message: str) -> None:
    assert message in refused(f"{ESTIMATOR}=gdpo", *words)


def test_rewards_by_name_are_inert_for_an_estimator_of_one_number() -> None:
    assert inert(f"{ESTIMATOR}=grpo", "algorithm.gdpo_reward_keys=[a,b]") == {"algorithm.gdpo_reward_keys"}


@pytest.mark.parametrize("kl_in_reward", [False, True])
@pytest.mark.parametrize(("estimator", "loss"), list(itertools.product(ESTIMATORS, LOSSES)))
def test_estimator_and_loss_load_together_unless_the_loss_needs_one_advantage_per_answer(
    estimator: str, loss: str, kl_in_reward: bool
) -> None:
    traits = ESTIMATORS[estimator]
    varies = traits.per_token or (traits.rewards_to_come and kl_in_reward)
    overrides = (*asked(estimator), f"{LOSS}={loss}", f"algorithm.use_kl_in_reward={kl_in_reward}")
    if traits.needs_components and kl_in_reward:
        assert "has no place in the advantages" in refused(*overrides)
        return
    if LOSSES[loss].per_sequence and varies:
        message = refused(*overrides)
        assert f"{LOSS} = {loss!r}" in message
        assert "takes one advantage per answer" in message
        assert estimator in message
        return
    resolved = load(overrides)
    assert resolved.honoured == resolved.given
    assert resolved.config.critic.enable == traits.needs_critic
    assert (get(resolved.config, f"{R}.n") > 1) == traits.needs_groups


def test_the_refused_pairs_are_those_that_have_no_meaning() -> None:
    per_answer = {"geo_mean", "power_mean", "gspo"}
    assert {name for name, traits in LOSSES.items() if traits.per_sequence} == per_answer
    assert {name for name, traits in ESTIMATORS.items() if traits.per_token} == {
        "gae",
        "optimal_token_baseline",
        "reinforce_plus_plus",
    }
    assert {name for name, traits in ESTIMATORS.items() if traits.rewards_to_come} == {"remax"}


def test_a_refused_pair_names_the_losses_that_would_do() -> None:
    message = refused("recipe=gmpo", f"{ESTIMATOR}=gae")
    assert "vanilla, gspo_token, cispo, sapo, gpg, dppo_tv, dppo_kl, dro, clip_cov, kl_cov" in message
    with_kl = refused("recipe=gmpo", f"{ESTIMATOR}=remax", "algorithm.use_kl_in_reward=True")
    assert f"{A}.use_kl_loss does not" in with_kl
    assert load(["recipe=gmpo", f"{ESTIMATOR}=remax", f"{A}.use_kl_loss=True"])


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_one_answer_per_problem_is_refused_exactly_where_answers_are_compared(estimator: str) -> None:
    overrides = (*asked(estimator), f"{R}.n=1")
    if ESTIMATORS[estimator].needs_groups:
        assert f"{R}.n = 1 (command line)\n      gives {estimator} nothing to compare" in refused(*overrides)
    else:
        assert load(overrides).config.actor_rollout_ref.rollout.n == 1


# --- numbers without a taker -------------------------------------------------------------------------------------

_GIVEN = {
    "algorithm.norm_adv_by_std_in_grpo": "False",
    "algorithm.gamma": "0.9",
    "algorithm.lam": "0.9",
    "algorithm.geo_mean_eps": "1e-6",
    "algorithm.geo_mean_offset": "1",
    "algorithm.gdpo_reward_weights": "[1.0,0.5]",
    f"{A}.clip_ratio_low": "0.1",
    f"{A}.clip_ratio_high": "0.1",
    f"{A}.clip_ratio_c": "4",
    f"{P}.clip_level": "sequence",
    f"{P}.length_norm": "False",
    f"{P}.geo_mean_upper": "1",
    f"{P}.power": "1",
    f"{A}.tau_pos": "2",
    f"{A}.tau_neg": "2",
    f"{P}.dppo_symmetric": "True",
    f"{P}.dro_beta": "2",
    f"{P}.clip_cov_ratio": "0.1",
    f"{P}.clip_cov_lb": "2",
    f"{P}.clip_cov_ub": "6",
    f"{P}.kl_cov_ratio": "0.1",
    f"{P}.ppo_kl_coef": "1",
}
"""A value other than the default for each key that a number comes from."""


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_a_number_of_the_estimator_is_inert_exactly_when_it_does_not_take_it(estimator: str) -> None:
    given = [f"{path}={_GIVEN[path]}" for path in ESTIMATOR_KEYS.values()]
    untaken = {path for number, path in ESTIMATOR_KEYS.items() if number not in ESTIMATORS[estimator].numbers}
    assert inert(*asked(estimator), *given) == untaken


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_number_of_the_loss_is_inert_exactly_when_it_does_not_take_it(loss: str) -> None:
    given = [f"{path}={_GIVEN[path]}" for path in LOSS_KEYS.values()]
    taken = LOSSES[loss].numbers + LOSSES[loss].select_numbers
    untaken = {path for number, path in LOSS_KEYS.items() if number not in taken}
    assert inert(f"{LOSS}={loss}", *given) == untaken


def test_an_inert_number_names_those_that_take_it() -> None:
    reasons = {note.path: note.reason for note in load([f"{A}.tau_pos=2", "algorithm.gamma=0.9"]).inert}
    assert reasons[f"{A}.tau_pos"] == f"{LOSS}=vanilla does not use it, only sapo"
    assert reasons["algorithm.gamma"] == f"only {ESTIMATOR}=gae or reinforce_plus_plus uses it"


@pytest.mark.parametrize(("loss", "clips"), [("gpg", False), ("sapo", False), ("kl_cov", False), ("cispo", True)])
def test_the_common_clip_bound_is_inert_for_a_loss_that_clips_nothing(loss: str, clips: bool) -> None:
    assert (f"{A}.clip_ratio" in inert(f"{LOSS}={loss}", f"{A}.clip_ratio=0.1")) == (not clips)


def test_bounds_are_inert_when_nothing_is_clipped_by_choice() -> None:
    bounds = {f"{A}.clip_ratio", f"{A}.clip_ratio_low"}
    given = ("recipe=gmpo", f"{A}.clip_ratio_low=0.1")
    assert inert(*given, f"{P}.clip_level=none", f"{P}.geo_mean_upper=1") == bounds
    assert inert(*given) == set()


def test_the_seed_of_mini_batches_is_read_where_they_are_shuffled_or_tokens_are_drawn() -> None:
    seed = f"{A}.data_loader_seed"
    assert seed in inert(f"{seed}=3")
    assert seed not in inert(f"{seed}=3", f"{A}.shuffle=True")
    assert seed not in inert(f"{seed}=3", f"{LOSS}=clip_cov")


# --- aggregation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_aggregation_is_inert_exactly_when_the_loss_has_its_own_and_no_other_term_is_there(loss: str) -> None:
    mode = f"{A}.loss_agg_mode"
    own = LOSSES[loss].per_sequence or LOSSES[loss].aggregation is not None
    given = (f"{LOSS}={loss}", f"{mode}=seq-mean-token-sum-norm", f"{A}.loss_scale_factor=100")
    assert inert(*given) == ({mode, f"{A}.loss_scale_factor"} if own else set())
    assert inert(*given, f"{A}.entropy_coeff=0.01") == set()
    assert inert(*given, f"{A}.use_kl_loss=True") == set()


def test_the_aggregation_is_not_inert_while_the_critic_follows_it() -> None:
    mode = f"{A}.loss_agg_mode"
    given = ("recipe=ppo", f"{LOSS}=gspo_token", f"{mode}=seq-mean-token-mean")
    assert mode not in inert(*given)
    assert mode in inert(*given, "critic.loss_agg_mode=token-mean")


# --- bounds on the wrong scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("geo_mean", "geo_mean clips log-ratios, and its published bounds are 0.4"),
        ("power_mean", "power_mean clips log-ratios, and its published bounds are 0.4"),
        (
            "gspo",
            "gspo clips the ratio of a whole answer, and its published bounds are 0.0003 and 0.0004, 500 times less",
        ),
        ("gspo_token", "gspo_token clips the ratio of a whole answer"),
    ],
)
def test_verls_default_bound_is_warned_of_where_it_is_on_another_scale(loss: str, words: str) -> None:
    path = f"{A}.clip_ratio"
    assert words in warned(f"{LOSS}={loss}")[path]
    for given in (f"{path}=0.2", f"{path}_low=0.2", f"{path}_high=0.2"):
        assert path not in warned(f"{LOSS}={loss}", given)


@pytest.mark.parametrize("loss", [name for name, traits in LOSSES.items() if traits.published_clip is None])
def test_verls_default_bound_suits_the_other_losses(loss: str) -> None:
    assert f"{A}.clip_ratio" not in warned(f"{LOSS}={loss}")


def test_no_bound_is_warned_of_when_none_is_used() -> None:
    assert f"{A}.clip_ratio" not in warned(f"{LOSS}=geo_mean", f"{P}.clip_level=none")


def test_a_lower_bound_of_one_is_warned_of_where_it_bounds_a_ratio() -> None:
    low = f"{A}.clip_ratio_low"
    assert "never binds" in warned(f"{low}=1")[low]
    assert low not in warned(f"{low}=1", f"{LOSS}=geo_mean")
    assert low not in warned(f"{low}=1", f"{LOSS}=gpg")


def test_a_power_mean_without_a_power_is_warned_of() -> None:
    assert "geo_mean" in warned(f"{LOSS}=power_mean")[f"{P}.power"]
    assert f"{P}.power" not in warned(f"{LOSS}=power_mean", f"{P}.power=0")
    assert f"{P}.power" not in warned()


@pytest.mark.parametrize("loss", [name for name, traits in LOSSES.items() if traits.per_sequence])
def test_one_update_per_rollout_is_warned_of_where_the_loss_then_has_nothing_of_its_own(loss: str) -> None:
    path, one = f"{A}.ppo_mini_batch_size", ("data.train_batch_size=256", f"{LOSS}={loss}")
    assert f"{loss} has the same gradient as vanilla with seq-mean-token-mean" in warned(*one)[path]
    assert path not in warned(*one, f"{A}.ppo_epochs=2")
    assert path not in warned(f"{LOSS}={loss}")
    # In bypass mode the first update too has ratios other than 1: those to the sampler.
    assert path not in warned(*one, "algorithm.rollout_correction.bypass_mode=True")
    assert path not in warned("data.train_batch_size=256")


def test_without_the_length_the_first_gradient_is_that_of_a_sum() -> None:
    given = ("recipe=gmpo", "data.train_batch_size=256", f"{P}.length_norm=False")
    assert "vanilla with seq-mean-token-sum." in warned(*given)[f"{A}.ppo_mini_batch_size"]


def test_a_band_of_covariances_that_holds_none_is_refused() -> None:
    band = (f"{P}.clip_cov_lb=5", f"{P}.clip_cov_ub=5")
    assert "no covariance lies between" in refused(f"{LOSS}=clip_cov", *band)
    assert inert(*band) == {f"{P}.clip_cov_lb", f"{P}.clip_cov_ub"}


def test_a_kl_penalty_that_may_leave_no_log_of_the_reward_is_warned_of() -> None:
    offset, given = "algorithm.geo_mean_offset", (f"{ESTIMATOR}=geo_mean", "algorithm.use_kl_in_reward=True")
    assert "has no log" in warned(*given)[offset]
    assert offset not in warned(*given, f"{offset}=1")
    assert offset not in warned(given[0])


# --- truncated sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "off"), [(f"{R}.top_p=0.9", 1), (f"{R}.top_k=20", -1)])
def test_truncated_sampling_is_refused_until_the_bias_is_accepted(written: str, off: int) -> None:
    path = written.partition("=")[0]
    message = refused(written)
    assert "ratios are biased" in message
    assert f"Set it to {off}, or accept the bias with {TRUNCATION}=True" in message
    assert "biased" in warned(written, f"{TRUNCATION}=True")[path]
    assert inert(written, f"{TRUNCATION}=True") == set()


def test_accepting_a_bias_that_is_not_there_has_no_effect() -> None:
    assert inert(f"{TRUNCATION}=True") == {TRUNCATION}
    assert inert(f"{TRUNCATION}=True", f"{R}.val_kwargs.top_p=0.7", "data.val_files=v") >= {TRUNCATION}


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("ppo", {ESTIMATOR: "gae", LOSS: "vanilla", f"{A}.clip_ratio_low": 0.2, "critic.enable": True, f"{R}.n": 1}),
        (
            "dr_grpo",
            {
                ESTIMATOR: "grpo",
                LOSS: "vanilla",
                "algorithm.norm_adv_by_std_in_grpo": False,
                f"{A}.loss_agg_mode": "seq-mean-token-sum-norm",
                f"{A}.use_kl_loss": False,
            },
        ),
        ("gspo", {ESTIMATOR: "grpo", LOSS: "gspo", f"{A}.clip_ratio_low": 3e-4, f"{A}.clip_ratio_high": 4e-4}),
        ("rloo", {ESTIMATOR: "rloo", LOSS: "vanilla", "algorithm.use_kl_in_reward": True, f"{R}.n": 5}),
    ],
)
def test_a_recipe_sets_its_objective_and_surprises_nobody(recipe: str, expected: dict[str, object]) -> None:
    resolved = load([f"recipe={recipe}"])
    assert {path: get(resolved.config, path) for path in expected} == expected
    assert [note.path for note in resolved.warnings] == ["data.train_files"]
