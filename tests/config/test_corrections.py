"""`algorithm.rollout_correction`: presets, thresholds of rejection, bypass mode, and what goes with what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.build.objective import build_correction
from gmpo.config import load
from gmpo.config.corrections import parse_rejections, rejections
from gmpo.config.presets import PRESETS
from gmpo.config.tree import get
from gmpo.errors import ConfigError
from gmpo.objectives import LOSSES, REJECTIONS, Rejection

C = "algorithm.rollout_correction"
A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
LOSS = f"{A}.policy_loss.loss_mode"


def inert(*overrides: str) -> set[str]:
    return {note.path for note in load(overrides).inert}


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    message = str(caught.value)
    assert message.startswith("1 problem in the configuration:")
    return message


# --- presets -----------------------------------------------------------------------------------------------------

_TOKEN, _SEQUENCE = ("rollout_is", "token"), ("rollout_is", "sequence")
_GEO = (("rollout_rs", ("seq_mean_k1",)), ("rollout_rs_threshold", "0.999_1.001"))
_K3 = (("rollout_rs", ("seq_mean_k3",)), ("rollout_rs_threshold", "0.01"))
_BYPASS, _REINFORCE = ("bypass_mode", True), ("loss_type", "reinforce")
_ICEPOP = ("icepop", (0.5, 5.0))
_VERL: dict[str, dict[str, Any]] = {
    "decoupled_token_is": dict([_TOKEN]),
    "decoupled_seq_is": dict([_SEQUENCE]),
    "decoupled_token_icepop": dict([_ICEPOP]),
    "decoupled_seq_is_rs": dict([_SEQUENCE, ("rollout_rs", ("seq_sum_k1",)), ("rollout_rs_threshold", "0.5_2.0")]),
    "decoupled_geo_rs": dict(_GEO),
    "decoupled_geo_rs_seq_tis": dict([_SEQUENCE, *_GEO]),
    "decoupled_geo_rs_token_tis": dict([_TOKEN, *_GEO]),
    "decoupled_k3_rs": dict(_K3),
    "decoupled_k3_rs_seq_tis": dict([_SEQUENCE, *_K3]),
    "decoupled_k3_rs_token_tis": dict([_TOKEN, *_K3]),
    "bypass_ppo_clip": dict([_BYPASS]),
    "bypass_ppo_clip_geo_rs": dict([_BYPASS, *_GEO]),
    "bypass_ppo_clip_k3_rs": dict([_BYPASS, *_K3]),
    "bypass_pg_is": dict([_BYPASS, _REINFORCE, _SEQUENCE]),
    "bypass_pg_token_icepop": dict([_BYPASS, _REINFORCE, _ICEPOP]),
    "bypass_pg_geo_rs": dict([_BYPASS, _REINFORCE, *_GEO]),
    "bypass_pg_geo_rs_seq_tis": dict([_BYPASS, _REINFORCE, _SEQUENCE, *_GEO]),
    "bypass_pg_geo_rs_token_tis": dict([_BYPASS, _REINFORCE, _TOKEN, *_GEO]),
}
"""verl's presets: where each differs from the defaults of the section."""


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_changes_what_verls_preset_changes_and_says_so(preset: str) -> None:
    plain, resolved = load().config.algorithm.rollout_correction, load([f"{C}.preset={preset}"])
    correction = resolved.config.algorithm.rollout_correction
    changed = {key: value for key, value in correction if value != getattr(plain, key)}
    assert changed == {"preset": preset, **_VERL[preset]}
    reported = {item.path: item.value for item in resolved.derived if "preset is" in item.why}
    assert reported == {f"{C}.{key}": value for key, value in _VERL[preset].items()}
    assert resolved.honoured == {f"{C}.preset"}


def test_every_preset_is_tested() -> None:
    assert set(_VERL) == set(PRESETS)


def test_a_given_key_wins_over_the_preset() -> None:
    given = (f"{C}.preset=decoupled_geo_rs_seq_tis", f"{C}.rollout_is=null", f"{C}.rollout_rs_threshold=0.9_1.1")
    correction = load(given).config.algorithm.rollout_correction
    assert correction.rollout_is is None
    assert correction.rollout_rs == ("seq_mean_k1",)
    assert correction.rollout_rs_threshold == "0.9_1.1"


# --- rejection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "thresholds", "expected"),
    [
        ("seq_mean_k1", "0.999_1.001", [("seq_mean_k1", 0.999, 1.001)]),
        ("token_k1", "2", [("token_k1", 0.5, 2.0)]),
        ("token_k1", "1_2", [("token_k1", 1.0, 2.0)]),
        ("seq_max_k2", "0.3", [("seq_max_k2", 0.0, 0.3)]),
        ("token_k2,seq_max_k3", "0.01", [("token_k2", 0.0, 0.01), ("seq_max_k3", 0.0, 0.01)]),
        ("token_k1,seq_mean_k3", "0.5_2.0, 1e-2", [("token_k1", 0.5, 2.0), ("seq_mean_k3", 0.0, 0.01)]),
        ("seq_sum_k1,seq_max_k2", "'4'", [("seq_sum_k1", 0.25, 4.0), ("seq_max_k2", 0.0, 4.0)]),
    ],
)
def test_thresholds_are_read_as_verl_reads_them(
    rules: str, thresholds: str, expected: list[tuple[str, float, float]]
) -> None:
    config = load([f"{C}.rollout_rs={rules}", f"{C}.rollout_rs_threshold={thresholds}"]).config
    assert rejections(config) == tuple(Rejection(*item) for item in expected)


def test_a_threshold_may_be_a_number_in_python() -> None:
    config = load(tree={C: {"rollout_rs": ["seq_mean_k3"], "rollout_rs_threshold": 0.01}}).config
    assert rejections(config) == (Rejection("seq_mean_k3", 0.0, 0.01),)


def test_without_options_nothing_is_rejected() -> None:
    assert rejections(load().config) == ()


@pytest.mark.parametrize(
    ("rules", "thresholds", "reason"),
    [
        ("seq_mean_k1", "null", "must be given with rollout_rs"),
        ("token_k1,token_k1", "2", "names an option twice"),
        ("token_k1,token_k2,token_k3", "2,3", "has 2 bounds for the 3 options"),
        ("token_k2", "0.1_0.2", "takes one upper bound above 0"),
        ("token_k3", "0", "takes one upper bound above 0"),
        ("token_k3", "-1", "takes one upper bound above 0"),
        ("token_k1", "0.5", "a single number u stands for the ratios 1/u to u and must exceed 1"),
        ("token_k1", "2.0_0.5", "a band of ratios must hold 1"),
        ("token_k1", "1.1_2.0", "a band of ratios must hold 1"),
        ("token_k1", "0_2", "a band of ratios must hold 1"),
        ("token_k1", "1_1", "a band of ratios must hold 1"),
        ("token_k1", "0.5_1_2", "holds '0.5_1_2' for token_k1, which is neither a number nor a band"),
        ("token_k1", "low_high", "neither a number nor a band"),
        ("token_k2", "inf", "neither a number nor a band"),
        ("token_k2", "nan", "neither a number nor a band"),
        ("token_k2", "0.1,", "has 2 bounds for the 1 options"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused_with_the_reason(rules: str, thresholds: str, reason: str) -> None:
    message = refused(f"{C}.rollout_rs={rules}", f"{C}.rollout_rs_threshold={thresholds}")
    assert f"{C}.rollout_rs_threshold = " in message
    assert reason in message


@given(st.lists(st.sampled_from(list(REJECTIONS)), max_size=3), st.none() | st.text("0123456789._,-e ", max_size=12))
def test_any_thresholds_are_rules_that_keep_equal_policies_or_a_reason(
    rules: list[str], thresholds: str | None
) -> None:
    try:
        found = parse_rejections(rules, thresholds)
    except ValueError as error:
        assert not str(error).startswith("could not convert")  # noqa: PT017  # both outcomes are allowed
        return
    assert [item.rule for item in found] == rules
    for item in found:
        agreement = 1.0 if REJECTIONS[item.rule].two_sided else 0.0
        assert item.low <= agreement <= item.high
        assert item.low < item.high


# --- what goes with what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([f"{C}.icepop=[0.5,5]", f"{C}.rollout_is=token"], "takes the place of"),
        ([f"{C}.icepop=[0.5,5]", f"{C}.preset=decoupled_token_is"], "takes the place of"),
        ([f"{C}.icepop=[5,0.5]"], "must be a band [low, high] of weights that holds 1"),
        ([f"{C}.icepop=[2,5]"], "must be a band [low, high] of weights that holds 1"),
        ([f"{C}.icepop=[-1,5]"], "must be a band [low, high] of weights that holds 1"),
        ([f"{C}.icepop=[1,1]"], "must be a band [low, high] of weights that holds 1"),
        ([f"{C}.geometric_weights=True", f"{C}.rollout_is=token"], "loss_mode=geo_mean or power_mean"),
        (["recipe=gmpo", f"{C}.geometric_weights=True", f"{C}.icepop=[0.5,5]"], "has no meaning with icepop"),
        ([f"{C}.loss_type=reinforce"], "is a loss of bypass mode"),
        (["recipe=gmpo", f"{C}.preset=bypass_pg_is"], "means actor_rollout_ref.actor.policy_loss.loss_mode=gpg"),
    ],
)
def test_corrections_that_contradict_each_other_are_refused(overrides: list[str], reason: str) -> None:
    assert reason in refused(*overrides)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_loss_takes_weights_of_either_level(loss: str, level: str) -> None:
    resolved = load([f"{LOSS}={loss}", f"{C}.rollout_is={level}", f"{C}.rollout_is_threshold=3"])
    assert resolved.honoured == resolved.given


@pytest.mark.parametrize("loss", list(LOSSES))
def test_geometric_weights_go_with_the_losses_that_take_a_mean_of_ratios(loss: str) -> None:
    overrides = (f"{LOSS}={loss}", f"{C}.rollout_is=token", f"{C}.geometric_weights=True")
    if loss in ("geo_mean", "power_mean"):
        assert load(overrides).config.algorithm.rollout_correction.geometric_weights
    else:
        assert f"{C}.geometric_weights = True" in refused(*overrides)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        (f"{C}.rollout_is_threshold=3", [f"{C}.rollout_is=token"]),
        (f"{C}.rollout_is_batch_normalize=True", [f"{C}.rollout_is=sequence"]),
        (f"{C}.rollout_rs_threshold=2", [f"{C}.rollout_rs=token_k1"]),
        (f"{C}.loss_type=ppo_clip", [f"{C}.bypass_mode=True"]),
        (f"{C}.geometric_weights=True", ["recipe=gmpo", f"{C}.rollout_is=token"]),
    ],
)
def test_a_key_of_the_corrections_is_inert_until_what_it_needs_is_on(written: str, remedy: list[str]) -> None:
    path = written.partition("=")[0]
    off = remedy[:1] if path.endswith("geometric_weights") else []
    assert path in inert(*off, written)
    assert path not in inert(*remedy, written)


def test_icepop_has_bounds_of_its_own() -> None:
    assert inert(f"{C}.icepop=[0.5,5]", f"{C}.rollout_is_threshold=3") == {f"{C}.rollout_is_threshold"}


def test_the_samplers_log_probs_are_always_kept() -> None:
    assert inert(f"{C}.rollout_is=token", f"{R}.calculate_log_probs=True") == {f"{R}.calculate_log_probs"}


# --- bypass ------------------------------------------------------------------------------------------------------


def test_reinforce_in_bypass_mode_is_the_plain_policy_gradient() -> None:
    resolved = load([f"{C}.bypass_mode=True", f"{C}.loss_type=reinforce", f"{C}.rollout_is=sequence"])
    assert get(resolved.config, LOSS) == "gpg"
    assert next(item.why for item in resolved.derived if item.path == LOSS) == f"{C}.loss_type is reinforce"
    assert load([f"{C}.bypass_mode=True", f"{C}.loss_type=reinforce", f"{LOSS}=gpg"])


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_has_a_bypass_mode(loss: str) -> None:
    assert get(load([f"{LOSS}={loss}", f"{C}.bypass_mode=True"]).config, LOSS) == loss


def test_in_bypass_mode_the_pass_for_old_log_probs_is_made_only_for_what_compares_with_it() -> None:
    size, mode = f"{R}.log_prob_micro_batch_size_per_gpu", f"{C}.bypass_mode=True"
    assert size in inert(mode, f"{size}=16")
    for needs in (f"{C}.preset=bypass_ppo_clip_k3_rs", "algorithm.use_kl_in_reward=True", f"{A}.entropy_quantile=0.8"):
        assert size not in inert(mode, f"{size}=16", needs)
    assert size not in inert(f"{size}=16")


@pytest.mark.parametrize("weights", [f"{C}.rollout_is=token", f"{C}.icepop=[0.5,5]"])
def test_in_bypass_mode_the_ratio_is_the_weight_and_none_is_applied(weights: str) -> None:
    """verl's script of several rejection rules gives rollout_is there, and its loss leaves it out too."""
    resolved = load([f"{C}.bypass_mode=True", weights])
    assert [note.path for note in resolved.without_effect if "is the weight already" in note.reason] == [
        weights.partition("=")[0]
    ]
    correction = build_correction(resolved.config)
    assert (correction.level, correction.icepop) == (None, None)
    weighed = build_correction(load([f"{C}.bypass_mode=True", f"{C}.loss_type=reinforce", weights]).config)
    assert (weighed.level, weighed.icepop) != (None, None)


def test_a_threshold_that_is_a_band_is_icepop() -> None:
    """verl's spelling: weights inside [0.5, 5] and 0 outside."""
    resolved = load([f"{C}.rollout_is=token", f"{C}.rollout_is_threshold=0.5_5.0"])
    correction = resolved.config.algorithm.rollout_correction
    assert (correction.rollout_is, correction.icepop) == (None, (0.5, 5.0))
    assert load([f"{C}.rollout_is_threshold=0.5_5.0"]).config.algorithm.rollout_correction.icepop is None
    with pytest.raises(ConfigError, match="is a band of weights per token"):
        load([f"{C}.rollout_is=sequence", f"{C}.rollout_is_threshold=0.5_5.0"])
