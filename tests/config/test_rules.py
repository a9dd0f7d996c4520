"""Rules over several settings, and the values that follow from others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmpo.config import Config, Resolved, load
from gmpo.config.derive import DERIVATIONS, derive
from gmpo.config.presets import PRESETS
from gmpo.config.rules import RULES, UNAVAILABLE_LOGGERS
from gmpo.config.tree import get, leaves
from gmpo.errors import ConfigError
from gmpo.objectives import ESTIMATORS, LOSSES

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
F = "actor_rollout_ref.ref"
ULYSSES = "ulysses_sequence_parallel_size"
VALIDATES = "data.val_files=v.parquet"


def value(path: str, *overrides: str) -> Any:
    return get(load(overrides).config, path)


def inert(*overrides: str) -> set[str]:
    return {note.path for note in load(overrides).inert}


def warned(*overrides: str) -> dict[str, str]:
    return {note.path: note.reason for note in load(overrides).warnings}


# --- impossible --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "path", "reason"),
    [
        (["data.train_batch_size=128"], f"{A}.ppo_mini_batch_size", "is larger than data.train_batch_size = 128"),
        (["data.train_max_samples=100"], "data.train_max_samples", "fewer problems than one step needs"),
        (["data.val_max_samples=0"], "data.val_max_samples", "must be -1"),
        ([f"{R}.n=1", "algorithm.adv_estimator=grpo"], f"{R}.n", "nothing to compare"),
        (
            [f"{A}.ppo_mini_batch_size=6", f"{R}.n=4", f"{A}.ppo_micro_batch_size_per_gpu=9"],
            f"{A}.ppo_micro_batch_size_per_gpu",
            "does not divide the 24 answers of a mini-batch (ppo_mini_batch_size 6 x rollout.n 4); "
            "nearest that do: 6, 8, 12",
        ),
        (
            [f"{A}.ppo_micro_batch_size=16", f"{A}.ppo_micro_batch_size_per_gpu=16"],
            f"{A}.ppo_micro_batch_size",
            "is deprecated",
        ),
        (
            [f"{A}.use_dynamic_bsz=True", f"{R}.log_prob_use_dynamic_bsz=False"],
            f"{R}.log_prob_use_dynamic_bsz",
            "nothing says how large a micro-batch is",
        ),
        (
            ["data.max_response_length=16000"],
            f"{A}.ppo_max_token_len_per_gpu",
            "is below data.max_prompt_length + data.max_response_length = 16512 tokens",
        ),
        ([f"{R}.log_prob_max_token_len_per_gpu=1000"], f"{R}.log_prob_max_token_len_per_gpu", "= 1024 tokens"),
        ([f"{R}.response_length=100"], f"{R}.response_length", "differs from data.max_response_length = 512"),
        (["trainer.resume_mode=resume_path"], "trainer.resume_from_path", "must be given"),
        (
            ["trainer.resume_mode=resume_path", "trainer.resume_from_path=runs/last"],
            "trainer.resume_from_path",
            "global_step_N",
        ),
        (["trainer.total_epochs=null"], "trainer.total_epochs", "are both null"),
        ([f"{R}.top_k=0"], f"{R}.top_k", "must be -1 (off) or at least 1"),
        ([f"{R}.val_kwargs.top_k=0"], f"{R}.val_kwargs.top_k", "must be -1 (off) or at least 1"),
        ([f"{A}.optim.betas=[0.9,1.0]"], f"{A}.optim.betas", "must be two numbers >= 0 and < 1"),
        (["trainer.val_only=True"], "trainer.val_only", "data.val_files is empty"),
    ],
)
def test_an_impossible_combination_is_refused(overrides: list[str], path: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    message = str(caught.value)
    assert message.startswith(f"1 problem in the configuration:\n  {path} = ")
    assert reason in message


def test_a_checkpoint_folder_may_end_in_a_slash() -> None:
    assert load(["trainer.resume_mode=resume_path", "trainer.resume_from_path=runs/a/global_step_20/"])


# --- not available -----------------------------------------------------------------------------------------------


def test_what_makes_sense_but_is_missing_here_is_unavailable() -> None:
    resolved = load(
        [
            f"{R}.name=vllm",
            "trainer.nnodes=2",
            "trainer.n_gpus_per_node=8",
            f"{A}.ulysses_sequence_parallel_size=4",  # it is there on CPUs only
            "trainer.logger=[console,mlflow,swanlab]",
        ]
    )
    reasons = {note.path: note.reason for note in resolved.unavailable}
    assert set(reasons) == resolved.given | {"actor_rollout_ref.model.path"}
    assert "comes with multi-GPU support" in reasons[f"{R}.name"]
    assert reasons["trainer.logger"].startswith("mlflow, swanlab: no such logger")
    assert resolved.honoured == frozenset()
    assert resolved.inert == ()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trainer.n_gpus_per_node=3"], "does not divide the 3 ranks into groups of equal size"),
        (
            ["trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.use_kl_loss=True", f"{F}.{ULYSSES}=3"],
            f"{F}.{ULYSSES} = 3",
        ),
        (["trainer.n_gpus_per_node=2", "critic.enable=True", f"critic.{ULYSSES}=4"], f"critic.{ULYSSES} = 4"),
    ],
)
def test_ranks_that_share_sequences_are_groups_of_equal_size(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load([*words, f"{A}.{ULYSSES}=2", "trainer.device=cpu"])
    assert reason in str(refused.value)


def test_one_rank_shares_its_sequences_with_nobody() -> None:
    resolved = load(["actor_rollout_ref.model.path=m", f"{A}.{ULYSSES}=2"])
    assert {note.path: note.reason for note in resolved.unavailable} == {
        f"{A}.{ULYSSES}": "divides sequences between ranks, and this run has one: trainer.n_gpus_per_node"
    }


def test_on_cpus_ranks_share_sequences() -> None:
    """Also those of a critic that does not exist, which are not asked for."""
    resolved = load(
        [
            "actor_rollout_ref.model.path=m",
            "trainer.device=cpu",
            "trainer.n_gpus_per_node=4",
            f"{A}.ulysses_sequence_parallel_size=2",
        ]
    )
    assert f"{A}.ulysses_sequence_parallel_size" in resolved.honoured


def test_nothing_is_unavailable_once_the_model_is_given() -> None:
    assert load(["actor_rollout_ref.model.path=m", "trainer.n_gpus_per_node=1"]).unavailable == ()


def test_loggers_that_are_missing_are_names_of_the_schema() -> None:
    assert set(UNAVAILABLE_LOGGERS) < set(leaves(Config)["trainer.logger"].choices)


# --- without effect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        (f"{A}.kl_loss_coef=0.1", [f"{A}.use_kl_loss=True"]),
        (f"{A}.kl_loss_type=k3+", [f"{A}.use_kl_loss=True"]),
        ("algorithm.kl_penalty=k3", ["algorithm.use_kl_in_reward=True"]),
        ("algorithm.kl_ctrl.kl_coef=0.1", ["algorithm.use_kl_in_reward=True"]),
        ("algorithm.kl_ctrl.horizon=10", ["algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.type=adaptive"]),
        (f"{F}.model.path=other", [f"{A}.use_kl_loss=True"]),
        (f"{F}.log_prob_micro_batch_size_per_gpu=4", ["algorithm.use_kl_in_reward=True"]),
        (f"{A}.loss_scale_factor=100", [f"{A}.loss_agg_mode=seq-mean-token-sum-norm"]),
        (f"{A}.data_loader_seed=3", [f"{A}.shuffle=True"]),
        ("data.seed=3", ["data.shuffle=True"]),
        (f"{A}.ppo_max_token_len_per_gpu=2000", [f"{A}.use_dynamic_bsz=True"]),
        (f"{A}.optim.min_lr_ratio=0.1", [f"{A}.optim.lr_scheduler_type=linear"]),
        (f"{A}.optim.num_cycles=1", [f"{A}.optim.lr_scheduler_type=cosine"]),
        (f"{A}.optim.total_training_steps=9", [f"{A}.optim.lr_warmup_steps_ratio=0.1"]),
        (f"{A}.optim.lr_warmup_steps_ratio=0.1", [f"{A}.optim.lr_warmup_steps=-1"]),
        ("trainer.resume_from_path=a/global_step_3", ["trainer.resume_mode=resume_path"]),
        ("custom_reward_function.name=f", ["custom_reward_function.path=r.py"]),
        ("trainer.test_freq=5", [VALIDATES]),
        (f"{R}.val_kwargs.n=4", [VALIDATES]),
        (f"{R}.val_kwargs.top_p=0.7", [VALIDATES, f"{R}.val_kwargs.temperature=1"]),
    ],
)
def test_a_given_key_without_effect_is_reported_until_what_it_needs_is_on(written: str, remedy: list[str]) -> None:
    path = written.partition("=")[0]
    off = {
        "data.seed": ["data.shuffle=False"],
        f"{A}.ppo_max_token_len_per_gpu": [f"{A}.ppo_micro_batch_size_per_gpu=16"],
        f"{A}.optim.lr_warmup_steps_ratio": [f"{A}.optim.lr_warmup_steps=5"],
        f"{R}.val_kwargs.top_p": [VALIDATES],
    }.get(path, [])
    assert path in inert(*off, written)
    assert path not in inert(*remedy, written)


def test_a_default_is_never_reported_as_inert() -> None:
    assert inert("trainer.seed=1") == set()


def test_clip_ratio_is_inert_only_when_both_bounds_are_given() -> None:
    both = (f"{A}.clip_ratio_low=0.1", f"{A}.clip_ratio_high=0.2")
    assert inert(f"{A}.clip_ratio=0.4", *both) == {f"{A}.clip_ratio"}
    assert inert(f"{A}.clip_ratio=0.4", both[0]) == set()


def test_problems_that_are_handed_over_take_the_place_of_files() -> None:
    overrides = ["trainer.test_freq=5", "trainer.val_only=True"]
    resolved = load(overrides, rows=True, val_rows=True)
    assert resolved.inert == resolved.warnings == ()
    assert resolved.given == {"trainer.test_freq", "trainer.val_only"}
    both = load(["data.train_files=a.parquet", VALIDATES], rows=True, val_rows=True)
    assert {note.path for note in both.inert} == {"data.train_files", "data.val_files"}


# --- warnings ----------------------------------------------------------------------------------------------------


def test_weights_without_optimizer_are_warned_of() -> None:
    assert "fresh optimizer" in warned(f"{A}.checkpoint.save_contents=['hf_model']")[f"{A}.checkpoint.save_contents"]
    missing = warned(f"{A}.checkpoint.save_contents=[model]", f"{A}.checkpoint.load_contents=[model,extra]")
    assert "asks for extra" in missing[f"{A}.checkpoint.load_contents"]


def test_greedy_validation_with_several_answers_is_warned_of() -> None:
    assert "all equal" in warned(VALIDATES, f"{R}.val_kwargs.n=4")[f"{R}.val_kwargs.n"]
    assert f"{R}.val_kwargs.n" not in warned(VALIDATES, f"{R}.val_kwargs.n=4", f"{R}.val_kwargs.temperature=1")


# --- derived -----------------------------------------------------------------------------------------------------


def test_clip_ratio_alone_sets_both_bounds() -> None:
    actor = load([f"{A}.clip_ratio=0.3"]).config.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.3, 0.3)


def test_a_group_estimator_derives_five_answers() -> None:
    assert value(f"{R}.n") == 5
    assert value(f"{R}.n", f"{R}.n=8") == 8


def test_micro_batches_are_dynamic_exactly_when_no_size_is_given() -> None:
    path = f"{A}.use_dynamic_bsz"
    assert value(path) is True
    assert value(path, f"{A}.ppo_micro_batch_size_per_gpu=16") is False
    assert value(path, f"{A}.ppo_micro_batch_size=16") is False
    assert value(path, f"{A}.ppo_micro_batch_size_per_gpu=16", f"{A}.use_dynamic_bsz=True") is True


def test_the_deprecated_micro_batch_size_becomes_the_per_gpu_one() -> None:
    actor = load([f"{A}.ppo_micro_batch_size=16"]).config.actor_rollout_ref.actor
    assert (actor.ppo_micro_batch_size_per_gpu, actor.ppo_micro_batch_size) == (16, None)


def test_log_prob_passes_follow_the_actor_unless_they_have_their_own_size() -> None:
    size, dynamic = f"{R}.log_prob_micro_batch_size_per_gpu", f"{R}.log_prob_use_dynamic_bsz"
    assert value(size, f"{A}.ppo_micro_batch_size_per_gpu=16") == 16
    assert value(dynamic, f"{A}.ppo_micro_batch_size_per_gpu=16") is False
    assert value(dynamic) is True
    assert value(dynamic, f"{size}=8") is False
    assert value(f"{F}.log_prob_max_token_len_per_gpu", f"{A}.ppo_max_token_len_per_gpu=4096") == 4096


def test_validation_samples_exactly_when_its_temperature_is_above_zero() -> None:
    assert value(f"{R}.val_kwargs.do_sample") is False
    assert value(f"{R}.val_kwargs.do_sample", f"{R}.val_kwargs.temperature=0.6") is True
    greedy = (f"{R}.val_kwargs.temperature=0.6", f"{R}.val_kwargs.do_sample=False", VALIDATES)
    assert value(f"{R}.val_kwargs.do_sample", *greedy) is False
    assert inert(*greedy) == {f"{R}.val_kwargs.temperature"}


def test_all_seeds_follow_the_one_of_the_run() -> None:
    config = load(["trainer.seed=7", f"{R}.seed=9"]).config
    assert config.data.seed == config.actor_rollout_ref.actor.data_loader_seed == 7
    assert config.actor_rollout_ref.rollout.seed == 9


def test_steps_alone_lift_the_bound_on_epochs() -> None:
    assert value("trainer.total_epochs", "trainer.total_training_steps=80") is None
    assert value("trainer.total_epochs", "trainer.total_training_steps=80", "trainer.total_epochs=2") == 2
    assert value("trainer.total_epochs") == 30


def test_null_asks_for_the_derived_value() -> None:
    resolved = load([f"{R}.n=null", "data.seed=null"])
    assert resolved.config.actor_rollout_ref.rollout.n == 5
    assert resolved.given == frozenset()


# --- whole tables ------------------------------------------------------------------------------------------------

_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.sampled_from(["gmpo", "grpo", "ppo", "gspo"]),
        "algorithm.adv_estimator": st.sampled_from(list(ESTIMATORS)),
        f"{A}.policy_loss.loss_mode": st.sampled_from(list(LOSSES)),
        "algorithm.rollout_correction.preset": st.sampled_from(list(PRESETS)),
        "critic.enable": st.sampled_from([None, True, False]),
        "critic.use_dynamic_bsz": st.booleans(),
        "critic.ppo_micro_batch_size": st.integers(1, 40),
        f"{A}.use_kl_loss": st.booleans(),
        "algorithm.use_kl_in_reward": st.booleans(),
        "algorithm.kl_ctrl.type": st.sampled_from(["fixed", "adaptive"]),
        f"{A}.use_dynamic_bsz": st.booleans(),
        f"{A}.ppo_micro_batch_size_per_gpu": st.integers(1, 40),
        f"{A}.ppo_micro_batch_size": st.integers(1, 40),
        f"{R}.log_prob_use_dynamic_bsz": st.booleans(),
        f"{F}.log_prob_micro_batch_size_per_gpu": st.integers(1, 40),
        f"{A}.ppo_mini_batch_size": st.integers(1, 2048),
        f"{R}.n": st.integers(1, 8),
        f"{R}.val_kwargs.temperature": st.sampled_from([0.0, 1.0]),
        f"{R}.val_kwargs.do_sample": st.booleans(),
        "data.val_files": st.sampled_from([None, "v.parquet"]),
        "trainer.total_epochs": st.sampled_from([None, 3]),
        "trainer.total_training_steps": st.sampled_from([None, 3]),
    },
)


@settings(max_examples=60, deadline=None)
@given(_SETTINGS)
def test_settings_load_or_are_refused_and_every_given_key_is_accounted_for_once(tree: dict[str, Any]) -> None:
    try:
        resolved: Resolved[Config] = load(tree=tree)
    except ConfigError:
        return
    known, inert_paths = leaves(Config), {note.path for note in resolved.inert}
    unavailable = {note.path for note in resolved.unavailable}
    assert resolved.honoured | inert_paths | (unavailable & resolved.given) == resolved.given
    assert not inert_paths & unavailable
    assert len(inert_paths) == len(resolved.inert)
    mentioned = [*resolved.inert, *resolved.unavailable, *resolved.warnings, *resolved.derived]
    assert all(item.path in known for item in mentioned)


def test_every_path_that_a_rule_names_is_in_the_tree() -> None:
    known = leaves(Config)
    trees: list[dict[str, Any]] = [
        {},
        {"recipe": "gmpo", "data.shuffle": False, "custom_reward_function.path": "r.py"},
        {"data.val_files": "v", f"{R}.val_kwargs.do_sample": True, f"{A}.optim.lr_scheduler_type": "linear"},
        {f"{A}.ppo_micro_batch_size_per_gpu": 16, "algorithm.use_kl_in_reward": True},
        {"trainer.nnodes": 2, "trainer.n_gpus_per_node": 2, "reward_model.reward_manager": "dapo"},
        {f"{R}.top_p": 0.5, "algorithm.allow_truncated_sampling": True, f"{A}.policy_loss.loss_mode": "gspo"},
        {"recipe": "ppo", "critic.optim.lr_scheduler_type": "linear", "critic.ppo_micro_batch_size_per_gpu": 16},
        {"algorithm.rollout_correction.preset": "bypass_ppo_clip", f"{A}.policy_loss.loss_mode": "power_mean"},
    ]
    for tree in trees:
        config = load(tree=tree).config
        for rule in RULES:
            for issue in rule(config, frozenset()):
                assert {issue.path, *issue.involves} <= set(known), issue


def test_derived_settings_are_exactly_those_that_a_derivation_fills() -> None:
    named = Config.model_validate({"actor_rollout_ref": {"model": {"path": "m"}}})  # two other models follow it
    _, derived = derive(named, frozenset(), DERIVATIONS)
    declared = {path for path, leaf in leaves(Config).items() if leaf.derived}
    filled = {item.path for item in derived}
    sizes = {f"{part}.log_prob_micro_batch_size_per_gpu" for part in (R, F)}
    sizes |= {f"critic.{part}_micro_batch_size_per_gpu" for part in ("ppo", "forward")}
    assert filled == declared - sizes  # null while batches are dynamic
    assert all(get(Config(), path) is None for path in declared)


def test_a_setting_follows_one_of_the_same_type_or_a_list_of_the_same_names() -> None:
    known = leaves(Config)
    followers = {path: leaf for path, leaf in known.items() if leaf.follows}
    assert len(followers) > 20
    for path, leaf in followers.items():
        source = known[leaf.follows or ""]
        assert (leaf.kind, leaf.choices) == (source.kind, source.choices), path
        assert leaf.nullable or not source.nullable, path


def test_what_follows_a_follower_takes_the_value_at_the_end() -> None:
    config = load(["trainer.seed=7", f"{A}.ppo_micro_batch_size=16"]).config
    assert config.critic.data_loader_seed == 7
    assert config.critic.forward_micro_batch_size_per_gpu == 16


def test_every_setting_has_a_description_of_one_or_two_sentences() -> None:
    for path, leaf in leaves(Config).items():
        text = leaf.field.description
        assert text, path
        assert text.endswith("."), path
