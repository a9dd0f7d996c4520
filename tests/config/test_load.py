"""Layers, unknown keys, wrong values, and the account of what the user gave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmpo.config import Config, load, load_sft
from gmpo.config.fields import Section
from gmpo.config.keys import MOVED, REFUSED_VALUES, SFT_MOVED, nearest
from gmpo.config.layers import recipes
from gmpo.config.load import NONE_AS_NULL
from gmpo.config.resolved import as_tree
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import Leaf, get, leaves
from gmpo.errors import ConfigError

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"

PUBLISHED = (
    "algorithm.adv_estimator=grpo",
    "data.train_files=['/home/user/data/gsm8k/train.parquet', '/home/user/data/math/train.parquet']",
    "data.val_files=['/home/user/data/gsm8k/test.parquet', '/home/user/data/math/test.parquet']",
    "data.train_batch_size=1024",
    "data.max_prompt_length=1024",
    "data.max_response_length=1024",
    "data.filter_overlong_prompts=True",
    "data.truncation=error",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B",
    f"{A}.optim.lr=1e-6",
    "actor_rollout_ref.model.use_remove_padding=True",
    f"{A}.ppo_mini_batch_size=256",
    f"{A}.ppo_micro_batch_size_per_gpu=16",
    f"{A}.use_kl_loss=False",
    f"{A}.kl_loss_coef=0.001",
    f"{A}.kl_loss_type=low_var_kl",
    f"{A}.policy_loss.loss_mode=geo_mean",
    f"{A}.clip_ratio_low=0.4",
    f"{A}.clip_ratio_high=0.4",
    f"{A}.entropy_coeff=0",
    "actor_rollout_ref.model.enable_gradient_checkpointing=True",
    f"{A}.fsdp_config.param_offload=False",
    f"{A}.fsdp_config.optimizer_offload=False",
    f"{R}.log_prob_micro_batch_size_per_gpu=16",
    f"{R}.tensor_model_parallel_size=2",
    f"{R}.name=vllm",
    f"{R}.gpu_memory_utilization=0.6",
    f"{R}.n=5",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.fsdp_config.param_offload=True",
    f"{A}.checkpoint.save_contents=['hf_model']",
    "algorithm.use_kl_in_reward=False",
    "trainer.critic_warmup=0",
    'trainer.logger=["console","wandb"]',
    "trainer.project_name=verl_gmpo_example_gsm8k_math",
    "trainer.experiment_name=qwen2_5_7b_function_rm",
    "trainer.n_gpus_per_node=8",
    "trainer.nnodes=1",
    "trainer.save_freq=20",
    "trainer.test_freq=5",
    "trainer.total_epochs=15",
)
"""verl's published GMPO command, examples/gmpo_trainer/run_qwen2_5-7b_math.sh."""


def problems(*overrides: str, **layers: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides, **layers)
    return str(caught.value)


# --- the published command ---------------------------------------------------------------------------------------


def test_the_published_command_loads_with_the_values_it_gives() -> None:
    config = load(PUBLISHED).config
    actor = config.actor_rollout_ref.actor
    assert actor.policy_loss.loss_mode == "geo_mean"
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.4, 0.4)
    assert actor.optim.lr == 1e-6
    assert actor.checkpoint.save_contents == ("hf_model",)
    assert config.data.train_files == ("/home/user/data/gsm8k/train.parquet", "/home/user/data/math/train.parquet")
    assert config.trainer.logger == ("console", "wandb")


def test_every_key_of_the_published_command_is_honoured_inert_or_unavailable() -> None:
    resolved = load(PUBLISHED)
    assert resolved.given == {override.partition("=")[0] for override in PUBLISHED}
    assert {note.path for note in resolved.unavailable} == {f"{R}.name", "trainer.n_gpus_per_node"}
    assert {note.path for note in resolved.inert} == {
        "actor_rollout_ref.model.use_remove_padding",
        f"{A}.fsdp_config.param_offload",
        f"{A}.fsdp_config.optimizer_offload",
        f"{A}.kl_loss_coef",
        f"{A}.kl_loss_type",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        "actor_rollout_ref.ref.fsdp_config.param_offload",
        f"{R}.tensor_model_parallel_size",
        f"{R}.gpu_memory_utilization",
        "trainer.critic_warmup",
    }
    assert len(resolved.honoured) == 41 - 10 - 2
    assert [note.path for note in resolved.warnings] == [f"{A}.checkpoint.save_contents"]


def test_what_the_published_command_leaves_open_is_derived() -> None:
    derived = {item.path: item.value for item in load(PUBLISHED).derived}
    assert derived == {
        f"{A}.use_dynamic_bsz": False,
        f"{R}.log_prob_use_dynamic_bsz": False,
        f"{A}.checkpoint.load_contents": ("hf_model",),
        "critic.enable": False,
        "data.seed": 1,
        f"{R}.seed": 1,
        f"{R}.val_kwargs.do_sample": False,
        "trainer.default_local_dir": "checkpoints/verl_gmpo_example_gsm8k_math/qwen2_5_7b_function_rm",
        "trainer.device": "auto",
    }


def test_a_value_without_effect_is_not_reported_as_derived() -> None:
    reference, critic = "actor_rollout_ref.ref.model.path", "critic.model.path"
    model = "actor_rollout_ref.model.path=m"
    assert not {reference, critic} & {item.path for item in load([model]).derived}
    with_both = load([model, f"{A}.use_kl_loss=True", "algorithm.adv_estimator=gae"])
    assert {reference, critic} < {item.path for item in with_both.derived}


# --- layers ------------------------------------------------------------------------------------------------------


def test_later_layers_win_over_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: gmpo\ntrainer.seed: 2\nactor_rollout_ref: {actor: {clip_ratio: 0.3, optim.lr: 1e-5}}\n")
    assert load(file=file).config.actor_rollout_ref.actor.clip_ratio_high == 0.3
    resolved = load(["trainer.seed=5", "trainer.seed=6"], file=file, tree={"trainer": {"seed": 3}, "data.seed": 4})
    assert resolved.config.trainer.seed == 6
    assert resolved.config.data.seed == 4
    assert resolved.config.actor_rollout_ref.actor.optim.lr == 1e-5
    assert resolved.config.actor_rollout_ref.actor.policy_loss.loss_mode == "geo_mean"


def test_the_command_line_chooses_the_recipe_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: gmpo\n")
    assert load(["recipe=grpo"], file=file).config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"
    assert load(["recipe=null"], file=file).given == frozenset()


def test_the_recipe_gmpo_sets_the_objective_and_either_bound_can_be_overridden() -> None:
    actor = load(["recipe=gmpo", f"{A}.clip_ratio_low=0.2"]).config.actor_rollout_ref.actor
    assert actor.policy_loss.loss_mode == "geo_mean"
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.4)


@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_loads_and_every_key_in_it_is_honoured_or_waits_for_several_gpus(name: str) -> None:
    resolved = load([f"recipe={name}"])
    assert resolved.given
    reasons = {note.path: note.reason for note in (*resolved.inert, *resolved.unavailable)}
    waits = (
        "multi-GPU support",
        "one process",
        "several ranks",
        "between ranks",
        "machines are joined by a Ray cluster",
        "computed with",
        "vllm",
    )
    assert not {p for p in resolved.given & set(reasons) if not any(word in reasons[p] for word in waits)}


def test_an_unknown_recipe_lists_the_known() -> None:
    assert f"known are {', '.join(recipes())}" in problems("recipe=nope")
    assert {"dr_grpo", "gmpo", "gmpo_qwen2_5_7b_math", "grpo", "gspo", "ppo", "rloo"} <= set(recipes())


def test_interpolations_in_a_file_follow_the_command_line_and_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  max_response_length: ${data.max_prompt_length}\n  val_max_samples: ${trainer.seed}\n")
    data = load(["data.max_prompt_length=64"], file=file).config.data
    assert (data.max_response_length, data.val_max_samples) == (64, 1)
    file.write_text("data: {max_response_length: '${data.nope}'}")
    assert "data.max_response_length = '${data.nope}'" in problems(file=file)


def test_plus_keys_reach_into_free_form_settings_and_unite_there() -> None:
    resolved = load(
        [
            "+custom_reward_function.reward_kwargs.tags.open=a",
            "+custom_reward_function.reward_kwargs.tags.close=b",
            "+actor_rollout_ref.model.override_config.max_position_embeddings=32768",
        ]
    )
    assert resolved.config.custom_reward_function.reward_kwargs == {"tags": {"open": "a", "close": "b"}}
    assert resolved.config.actor_rollout_ref.model.override_config == {"max_position_embeddings": 32768}


def test_a_key_inside_a_free_form_setting_may_hold_a_dot() -> None:
    tree = {"custom_reward_function": {"path": "r.py", "reward_kwargs": {"gpt-4.1": 2}}}
    assert load(tree=tree).config.custom_reward_function.reward_kwargs == {"gpt-4.1": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("3\n", "holds no keys"),
        ("trainer.seed: 1\ntrainer.seed: 2\n", "duplicate key"),
    ],
)
def test_a_malformed_file_is_named_with_its_cause(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    message = problems(file=file)
    assert str(file) in message
    assert words in message


def test_a_missing_file_is_named() -> None:
    assert "nowhere.yaml: cannot be read: No such file" in problems(file=Path("nowhere.yaml"))


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("loss_mode=geo_mean", f"{A}.policy_loss.loss_mode"),
        ("policy_loss.loss_mode=geo_mean", f"{A}.policy_loss.loss_mode"),
        ("clip_ratio=0.4", f"{A}.clip_ratio"),
        ("actor.optim.lr=1e-6", f"{A}.optim.lr"),
        ("actor_rollout.ref.rollout.n=5", f"{R}.n"),
        ("actor_rollout_ref.actor.optim.lrr=1e-6", f"{A}.optim.lr"),
        ("data.train_batchsize=8", "data.train_batch_size"),
        ("trainer.total_epoch=2", "trainer.total_epochs"),
        ("rollout.temprature=1", f"{R}.temperature"),
        ("trainer.seed.x=1", "trainer.seed"),
        ("model.lr=1e-6", f"{A}.optim.lr"),
        ("ppo.loss_mode=geo_mean", f"{A}.policy_loss.loss_mode"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant_first(written: str, meant: str) -> None:
    message = problems(written)
    assert f"Did you mean {meant}" in message
    assert message.startswith("1 problem in the configuration:")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("trainer.epochs", ["trainer.total_epochs"]),
        ("trainer.sede", ["trainer.seed"]),
        ("trainer.save_frequency", ["trainer.save_freq"]),
        ("trainer.totalsteps", []),
        ("data.batch_size", ["data.train_batch_size", "data.gen_batch_size", "data.val_batch_size"]),
        ("data_train_batch_size", ["data.train_batch_size"]),
        ("data.val_file", ["data.val_files"]),
        ("data.maxpromptlength", ["data.max_prompt_length"]),
        ("algorithm.adv_estimater", ["algorithm.adv_estimator"]),
        ("algoritm.gamma", ["algorithm.gamma"]),
        (f"{A}.clip_ratio_hihg", [f"{A}.clip_ratio_high"]),
        (f"{A}.kl_coef", ["algorithm.kl_ctrl.kl_coef"]),
        (f"{R}.temp", [f"{R}.temperature"]),
        (f"{A}.optim.beta1", [f"{A}.optim.betas"]),
        (f"{A}.optim.scheduler", []),
        ("trainer.learning_rate", []),
        ("trainer.wandb_key", []),
        ("data.tokens", []),
        ("reward.function", []),
        ("foo.path", []),
        ("banana", []),
        ("critic.lora_path", []),
        ("my.own.path", []),
    ],
)
def test_a_suggestion_is_made_only_where_a_key_is_near(written: str, meant: list[str]) -> None:
    found = nearest(written, leaves(Config))
    assert sorted(found) == sorted(meant)


def test_where_no_key_is_near_the_keys_of_the_section_are_named() -> None:
    assert (
        f"unknown key. {A}.optim holds lr, weight_decay, betas, eps, lr_warmup_steps, lr_warmup_steps_ratio, "
        "lr_scheduler_type, min_lr_ratio, num_cycles, total_training_steps; `docs/configuration.md` lists all keys."
    ) in problems(f"{A}.optim.scheduler=cosine")
    assert "unknown key. data holds train_files, val_files, " in problems("data.tokens.x=3")
    assert "seed, .. `docs" not in problems("data.tokens=3")
    assert "unknown key. `docs/configuration.md` lists all keys." in problems("banana=1")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("critic.megatron.seed=1", "Megatron is not a backend of gmpo; trainer.seed"),
        ("actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2", "fsdp_config.fsdp_size shards the weights"),
        ("algorithm.rollout_is_level=token", "algorithm.rollout_correction.rollout_is"),
        ("algorithm.rollout_correction.rollout_token_veto_threshold=1e-4", "no code of verl reads it"),
        ("critic.model.lora_rank=8", "the critic has no adapters"),
        ("actor_rollout_ref.actor.tis_imp_ratio_cap=2", "rollout_is=token"),
        ("reward_model.enable=True", "reward models are not available"),
    ],
)
def test_a_key_that_verl_has_is_refused_with_its_own_reason(written: str, reason: str) -> None:
    message = problems(written)
    assert reason in message
    assert "unknown key" not in message


def test_a_section_is_not_a_setting() -> None:
    assert "is a section" in problems("trainer=3")
    assert "is a section" in problems(tree={"trainer": None})


def test_other_names_of_verl_are_taken_and_reported() -> None:
    resolved = load(["reward.reward_manager.name=naive", f"{A}.optim.clip_grad=0.5"])
    assert resolved.config.actor_rollout_ref.actor.grad_clip == 0.5
    assert resolved.given == {"reward_model.reward_manager", f"{A}.grad_clip"}
    assert {note.path for note in resolved.warnings} >= resolved.given
    assert load_sft(["model.partial_pretrain=m"]).config.model.path == "m"


def test_a_setting_given_under_both_names_is_refused() -> None:
    assert "given both as" in problems(f"{A}.optim.clip_grad=0.5", f"{A}.grad_clip=1")


def test_every_other_name_leads_to_a_key_and_is_none_itself() -> None:
    for root, table in ((Config, MOVED), (SftConfig, SFT_MOVED)):
        for old, new in table.items():
            assert old not in leaves(root)
            assert any(path == new or path.startswith(f"{new}.") for path in leaves(root))


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (f"{A}.optim.lr=fast", "must be a number >= 0"),
        (f"{A}.optim.lr=-1", "must be a number >= 0"),
        (f"{A}.optim.lr=nan", "must be a number >= 0"),
        (f"{A}.optim.lr=inf", "must be a number >= 0"),
        (f"{A}.entropy_coeff=nan", "must be a number"),
        (f"{A}.optim.betas=[0.9]", "must be a list of 2 numbers"),
        (f"{A}.clip_ratio_c=1", "must be a number > 1"),
        (f"{R}.temperature=0", "must be a number > 0"),
        (f"{R}.top_p=0", "must be a number > 0 and <= 1"),
        (f"{R}.top_p=1.1", "must be a number > 0 and <= 1"),
        (f"{A}.ppo_epochs=True", "must be an integer >= 1"),
        (f"{A}.ppo_epochs=1.5", "must be an integer >= 1"),
        ("trainer.val_only=1", "must be True or False"),
        ("trainer.save_freq=-2", "must be an integer >= -1"),
        ("data.max_prompt_length=null", "must be an integer >= 1"),
        ("data.truncation=lefft", "must be one of error, left, right, middle. Did you mean left?"),
        ("trainer.logger=[console,wanbd]", "Did you mean wandb?"),
        ("actor_rollout_ref.model.override_config=3", "must be keys with values"),
        (f"{A}.policy_loss.loss_mode=geomean", "Did you mean geo_mean?"),
        ("algorithm.adv_estimator=gea", "must be one of grpo, gae, rloo"),
        ("algorithm.adv_estimator=gea", "Did you mean gae?"),
        (f"{A}.policy_loss.power=half", "must be a number, or a list of 2 numbers"),
        (f"{A}.policy_loss.power=[1]", "must be a number, or a list of 2 numbers"),
        ("algorithm.rollout_correction.rollout_rs=token_k1,seq_k1", "Did you mean seq_sum_k1?"),
        ("algorithm.rollout_correction.icepop=[1]", "must be a list of 2 numbers, or null"),
        ("algorithm.rollout_correction.preset=decoupled", "must be one of decoupled_token_is,"),
        (f"{A}.entropy_quantile=1", "must be a number >= 0 and < 1, or null"),
        (f"{A}.checkpoint.load_contents=[weights]", "must be a list of model, optimizer, extra, hf_model"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(written: str, said: str) -> None:
    path = written.partition("=")[0]
    message = problems(written)
    assert message.startswith(f"1 problem in the configuration:\n  {path} = ")
    assert "(command line)" in message
    assert said in message


MAY_BE_BLANK = {
    "actor_rollout_ref.rollout.load_format": "nothing reads it",
    "algorithm.rollout_correction.rollout_rs_threshold": "verl's text of numbers; a rule reads it with rollout_rs",
    "reward_model.thinking_tags": "the scorer refuses it with words of its own",
}


@pytest.mark.parametrize("root", [Config, SftConfig])
def test_every_text_that_leads_somewhere_or_names_something_is_refused_when_it_is_empty(root: type[Section]) -> None:
    read = load if root is Config else load_sft
    texts = {path: leaf for path, leaf in leaves(root).items() if not leaf.choices and _takes_texts(leaf)}
    places = [path for path in texts if path.endswith(("path", "dir", "_files", "_history"))]
    assert len(places) == (13 if root is Config else 4)
    assert {path for path in texts if texts[path].filled is None} == MAY_BE_BLANK.keys() & texts.keys()
    for path in texts.keys() - MAY_BE_BLANK.keys():
        for written in (f"{path}=", f"{path}=' '", f"{path}=['a', '']" if texts[path].kind is tuple else f"{path}=''"):
            with pytest.raises(ConfigError) as caught:
                read([written])
            assert f"  {path} = " in str(caught.value), written
            assert "It is empty: a variable of the shell that is not set? Give one, or leave" in str(caught.value)
    assert all("path" in texts[path].allowed for path in places)


def _takes_texts(leaf: Leaf) -> bool:
    item = get_args(leaf.field.annotation)[0] if leaf.kind is tuple else None
    return leaf.kind is str or item is str or (get_args(item) or (None,))[0] is str


def test_an_empty_path_of_a_further_reward_is_named_with_its_entry() -> None:
    said = problems("reward_model.extra_rewards=[{path: a.py}, {path: ''}]")
    assert "In entry 2, path: It is empty: a variable of the shell that is not set?" in said


@pytest.mark.parametrize(
    ("written", "path", "value", "noted"),
    [
        ("custom_reward_function.name=none", "custom_reward_function.name", "none", False),
        ("trainer.experiment_name=None", "trainer.experiment_name", "None", False),
        ("trainer.rollout_data_dir=None", "trainer.rollout_data_dir", None, True),
        ("trainer.rollout_data_dir='None'", "trainer.rollout_data_dir", "None", False),
        ("trainer.rollout_data_dir=null", "trainer.rollout_data_dir", None, False),
        ("reward.custom_reward_function.path=none", "custom_reward_function.path", None, True),
        ("data.val_files=None", "data.val_files", (), True),
        ("data.val_batch_size=None", "data.val_batch_size", None, False),
        (
            "custom_reward_function.reward_kwargs.mode=none",
            "custom_reward_function.reward_kwargs",
            {"mode": "none"},
            False,
        ),
    ],
)
def test_none_is_null_where_null_may_stand_which_is_said_and_a_text_elsewhere(
    written: str, path: str, value: Any, noted: bool
) -> None:
    resolved = load([written])
    assert get(resolved.config, path) == value
    assert [note.path for note in resolved.warnings if note.reason == NONE_AS_NULL] == [path] * noted


@pytest.mark.parametrize(("path", "value"), list(REFUSED_VALUES))
def test_a_value_that_verl_knows_is_refused_with_its_own_reason(path: str, value: str) -> None:
    assert path in leaves(Config)
    assert REFUSED_VALUES[path, value] in problems(f"{path}={value}")


def test_values_are_converted_only_where_nothing_is_lost() -> None:
    config = load(
        ["trainer.total_training_steps=1e3", "data.train_files=a.parquet", "data.val_files=null", f"{R}.temperature=1"]
    ).config
    assert config.trainer.total_training_steps == 1000
    assert config.data.train_files == ("a.parquet",)
    assert config.data.val_files == ()
    assert config.actor_rollout_ref.rollout.temperature == 1.0


@pytest.mark.parametrize(
    ("path", "written", "name"),
    [
        (f"{A}.policy_loss.loss_mode", "clip-cov", "clip_cov"),
        (f"{A}.policy_loss.loss_mode", "kl-cov", "kl_cov"),
        (f"{A}.policy_loss.loss_mode", "'geo-mean'", "geo_mean"),
        ("algorithm.adv_estimator", "geo-mean", "geo_mean"),
        ("algorithm.adv_estimator", "reinforce_plus-plus", "reinforce_plus_plus"),
        (f"{A}.loss_agg_mode", "seq-mean-token-sum", "seq-mean-token-sum"),
        (f"{A}.policy_loss.clip_level", "none", "none"),
    ],
)
def test_a_name_may_be_written_with_hyphens_or_be_none(path: str, written: str, name: str) -> None:
    assert get(load([f"{path}={written}"]).config, path) == name


@pytest.mark.parametrize("written", ["token_k1,seq-max-k2", "[token_k1, seq_max_k2]", "['token_k1','seq_max_k2']"])
def test_names_may_be_listed_with_commas_or_brackets(written: str) -> None:
    options = "algorithm.rollout_correction.rollout_rs"
    assert get(load([f"{options}={written}", f"{options}_threshold=3"]).config, options) == ("token_k1", "seq_max_k2")


def test_a_value_of_a_foreign_type_is_named() -> None:
    assert "trainer.seed = " in problems(tree={"trainer.seed": object()})
    assert "is of type object" in problems(tree={"trainer.seed": object()})


def test_all_problems_are_listed_together() -> None:
    message = problems(
        "nonsense",
        "recipe=nope",
        "loss_mode=geo_mean",
        "data.custom_cls.path=x.py",
        f"{A}.optim.lr=fast",
        f"{A}.kl_loss_type=full",
        "trainer.resume_mode=resume_path",
        "algorithm.adv_estimator=grpo",
        f"{R}.n=1",
        "data.train_batch_size=8",
    )
    assert message.startswith("9 problems in the configuration:")
    assert all(
        words in message
        for words in (
            "'nonsense'",
            "recipe = 'nope'",
            "loss_mode = 'geo_mean'",
            "data.custom_cls.path = 'x.py'",
            f"{A}.optim.lr = 'fast'",
            f"{A}.kl_loss_type = 'full'",
            "trainer.resume_from_path = null",
            f"{R}.n = 1",
            f"{A}.ppo_mini_batch_size = 256 (default)",
        )
    )


def test_a_problem_does_not_bring_others_that_only_follow_from_it() -> None:
    # Without the first key the mini-batch of 256 would be larger than the batch; the user did not ask for that.
    assert problems("actor.ppo_mini_batch_size=8", "data.train_batch_size=16").startswith("1 problem")
    assert problems(f"{A}.ppo_mini_batch_size=many", "data.train_batch_size=16").startswith("1 problem")


# --- the resolved configuration ------------------------------------------------------------------------------------


def test_defaults_alone_load_and_leave_no_derived_setting_empty() -> None:
    for resolved, root in ((load(), Config), (load_sft(), SftConfig)):
        assert resolved.given == frozenset()
        assert resolved.inert == ()
        for path, leaf in leaves(root).items():
            node: Any = resolved.config
            for name in path.split("."):
                node = getattr(node, name)
            assert node is not None or leaf.nullable, path


@pytest.mark.parametrize(
    "overrides",
    [
        PUBLISHED,
        (),
        ("recipe=gmpo", "trainer.total_training_steps=80", "trainer.experiment_name=1e-6"),
        (f"{A}.ppo_micro_batch_size=64", f"{R}.val_kwargs.temperature=1.0", "data.val_files=v.parquet"),
        (f"{A}.use_dynamic_bsz=True", f"{R}.log_prob_micro_batch_size_per_gpu=4"),
        ("recipe=ppo", "critic.ppo_micro_batch_size=16", "actor_rollout_ref.model.path=m"),
        ("recipe=ppo", f"{A}.ppo_micro_batch_size_per_gpu=16", "critic.use_dynamic_bsz=True"),
        ("algorithm.rollout_correction.preset=bypass_pg_geo_rs_seq_tis",),
        ("algorithm.rollout_correction.icepop=[0.5,5]", f"{A}.policy_loss.power=[1,-1]"),
    ],
)
def test_the_resolved_yaml_loads_to_an_equal_configuration(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    file = tmp_path / "resolved.yaml"
    first = load(overrides)
    file.write_text(first.to_yaml())
    again = load(file=file)
    assert again.config == first.config
    assert again.to_yaml() == first.to_yaml()


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cc", "Cs"])), st.integers(0, 2**40), st.floats(0, 1e6))
def test_any_text_and_number_survive_the_resolved_yaml(text: str, seed: int, lr: float) -> None:
    tree = {"trainer.seed": seed, f"{A}.optim.lr": lr, "actor_rollout_ref.model.override_config": {"key": ["x", seed]}}
    template = {"custom_reward_function.reward_kwargs": {"prompt": text.replace("${", "$")}}
    first = load(tree=tree | template)
    assert first.config.custom_reward_function.reward_kwargs["prompt"] == text.replace("${", "$")
    again = load(tree=as_tree(first.config))
    assert again.config == first.config


@pytest.mark.parametrize("text", ["${x}", "a ${b} c", "\\${x}", "\\\\${x}", "{{ m['a'] }}${y}\n\\n"])
def test_a_text_that_looks_like_an_interpolation_survives_the_resolved_yaml(tmp_path: Path, text: str) -> None:
    changed = load().config.model_copy(deep=True)
    reward = changed.custom_reward_function.model_copy(update={"reward_kwargs": {"prompt": text}})
    config = changed.model_copy(update={"custom_reward_function": reward})
    assert load(tree=as_tree(config)).config == config


def test_a_loaded_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().config.trainer.seed = 3  # type: ignore[misc]


def test_configuration_loads_without_torch_and_its_like() -> None:
    code = (
        "import sys; import gmpo.config, gmpo.check.report; gmpo.config.load(['recipe=gmpo']).to_yaml();"
        "print([m for m in ('torch', 'transformers', 'ray', 'vllm', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- supervised learning -------------------------------------------------------------------------------------------


def test_supervised_learning_has_a_tree_of_its_own_with_the_same_checks() -> None:
    config = load_sft(["data.train_batch_size=100", "model.path=m", "optim.warmup_steps_ratio=0.05"]).config
    assert config.data.micro_batch_size_per_gpu == 25
    assert config.data.response_key == "extra_info.answer"
    assert config.trainer.default_local_dir == "checkpoints/gmpo/sft"
    with pytest.raises(ConfigError, match="4 problems") as caught:
        load_sft(["optim.clip_grd=1", "data.micro_batch_size_per_gpu=3", "optim.betas=[0.9,1]", "recipe=gmpo"])
    for words in ("Did you mean optim.clip_grad?", "does not divide data.train_batch_size = 256", "< 1", "none for"):
        assert words in str(caught.value)
    assert {note.path for note in load_sft().unavailable} == {"model.path", "data.train_files"}
