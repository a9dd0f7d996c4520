"""verl 0.9.1: its defaults, its saved files, its scripts, its other engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gmpo.config import load
from gmpo.config.keys import GATES
from gmpo.config.tree import nest
from gmpo.errors import ConfigError

SHARED = Path(__file__).parents[3] / "shared"
A, R, REF, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref", "model"))

SAVED: dict[str, Any] = {
    "algorithm.adv_estimator": "gae",
    f"{R}.n": 1,
    f"{R}.name": "vllm",
    f"{MODEL}.path": "folder",
    "data.train_files": "train.parquet",
    f"{A}._target_": "verl.workers.config.FSDPActorConfig",
    f"{A}.optim.total_training_steps": -1,
    f"{A}.optim.warmup_style": None,
    f"{A}.optim.lr_scheduler_type": "cosine",
    f"{A}.optim.optimizer": "AdamW",
    f"{A}.optim.optimizer_impl": "torch.optim",
    f"{A}.optim.clip_grad": 1.0,
    f"{A}.grad_clip": 0.5,
    f"{A}.ppo_mini_batch_size": 64,
    f"{A}.use_dynamic_bsz": False,
    f"{A}.fsdp_config.dtype": "bfloat16",
    f"{A}.strategy": "fsdp",
    f"{A}.fsdp_config.strategy": f"${{{A}.strategy}}",
    f"{REF}.strategy": f"${{{A}.strategy}}",
    f"{REF}.fsdp_config.strategy": "fsdp",
    f"{A}.rollout_n": f"${{oc.select:{R}.n,1}}",
    f"{MODEL}.lora.rank": 0,
    f"{MODEL}.lora.alpha": 32,
    "reward_model.reward_manager": None,
    "reward.reward_manager.name": "dapo",
    "custom_reward_function.path": None,
    "reward.reward_manager.source": "register",
    "reward.reward_manager.module.name": "custom_reward_manager",
    "reward.reward_model.enable": False,
    "reward.reward_model.rollout.tensor_model_parallel_size": 2,
    "distillation.enabled": False,
    "distillation.n_gpus_per_node": 8,
    "trainer.v1.trainer_mode": "sync",
    "trainer.v1.separate_async.parameter_sync_step": 4,
    "skip.rollout.enable": False,
    "skip.rollout.action": "cache",
}
"""Keys as verl writes them into a run's configuration, each kind once."""


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load([*overrides])
    return str(raised.value)


def test_a_configuration_that_verl_saved_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(nest(SAVED)))
    config = load(file=file).config
    assert config.algorithm.adv_estimator == "gae"
    assert config.reward_model.reward_manager == "dapo"
    # Of two names of one setting, the one that stands at the default says nothing.
    assert config.actor_rollout_ref.actor.grad_clip == 0.5
    assert config.actor_rollout_ref.actor.fsdp_config.dtype == "bf16"
    assert config.actor_rollout_ref.actor.optim.lr_scheduler_type == "cosine"
    # 64 answers a mini-batch, in micro-batches of the largest divisor up to 32.
    assert config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 32


def test_every_default_of_verl_is_accepted_alone_and_together(tmp_path: Path) -> None:
    source = SHARED / "verl_defaults.json"
    if not source.exists():
        return
    defaults = {key: value for key, value in json.loads(source.read_text()).items() if value != "???"}
    for key, value in defaults.items():
        tree = {f"{MODEL}.path": "folder", "data.train_files": "train.parquet", key: value}
        load(tree=nest({path: {} if one == "{}" else one for path, one in tree.items()}))
    given = {**defaults, f"{MODEL}.path": "folder", "data.train_files": "train.parquet", f"{R}.name": "vllm"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(nest({path: {} if one == "{}" else one for path, one in given.items()})))
    load(file=file)


def test_the_scripts_of_verl_are_accepted_or_refused_for_what_is_missing() -> None:
    source = SHARED / "verl_scripts_today.json"
    if not source.exists():
        return
    missing = {
        "grpo_trainer_run_qwen3_5_2b_openr1_fsdp.sh": ".log",
    }
    for name, overrides in json.loads(source.read_text()).items():
        if name in missing:
            assert missing[name] in refusal(*overrides)
        else:
            load(overrides)


def test_the_switch_of_verl_for_the_token_baseline_is_accepted_with_any_value() -> None:
    key = "actor_rollout_ref.actor.calculate_sum_pi_squared"
    for value in (True, False):
        assert load(["algorithm.adv_estimator=optimal_token_baseline", f"{key}={value}"])
    assert "write optimal_token_baseline" in refusal("algorithm.adv_estimator=tir_optimal_token_baseline")


@pytest.mark.parametrize(
    ("switch", "key"),
    [
        ("distillation.enabled=True", "distillation.n_gpus_per_node=4"),
        ("reward.reward_model.enable=True", "reward.reward_model.rollout.n=2"),
        ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2"),
        (f"{MODEL}.mtp.enable=True", f"{MODEL}.mtp.mtp_loss_scaling_factor=0.2"),
        ("critic.model.lora_rank=8", "critic.model.lora_alpha=64"),
        (f"{R}.disaggregation.enabled=True", f"{R}.disaggregation.prefill_replicas=2"),
        ("skip.rollout.enable=True", "skip.rollout.action=repeat"),
        (f"{A}.fsdp_config.qat.enable=True", f"{A}.fsdp_config.qat.group_size=32"),
        ("reward.reward_manager.source=importlib", "reward.reward_manager.module.path=mine.py"),
    ],
)
def test_what_a_switch_guards_has_no_effect_while_it_is_off_and_is_refused_when_it_is_on(switch: str, key: str) -> None:
    (ignored,) = load([key]).ignored
    assert "is off (" in ignored.reason
    message = refusal(key, switch)  # In either order.
    assert sorted(message.splitlines()) == sorted(refusal(switch, key).splitlines())
    assert switch.partition("=")[0] in message or "reward_model.reward_manager.source" in message


def test_every_gate_has_its_switch_in_reach() -> None:
    """A switch is a key of verl that is refused when it is on: it lies below a gate or is one itself."""
    for prefix, gate in GATES.items():
        assert gate["switch"].split(".")[0] == prefix.split(".")[0]
        with pytest.raises(ConfigError):
            load([f"{gate['switch']}=on"])


@pytest.mark.parametrize(
    ("word", "engine"),
    [
        ("model_engine=megatron", "Megatron"),
        ("model_engine=veomni", "VeOmni"),
        ("actor@actor_rollout_ref.actor=torchtitan", "TorchTitan"),
        (f"{A}.strategy=megatron", "Megatron"),
        ("+critic.strategy=veomni", "VeOmni"),
        (f"{A}.fsdp_config.strategy=veomni", "VeOmni"),
        ("--config-name=ppo_megatron_trainer.yaml", "Megatron"),
        ("--config-name='ppo_megatron_trainer'", "Megatron"),
    ],
)
def test_a_command_for_another_engine_is_refused_once_by_its_name(word: str, engine: str) -> None:
    message = refusal("data.tarin_files=x", word, f"{A}.megatron.tensor_model_parallel_size=4")
    assert f"verl's {engine} engine" in message
    assert "tarin" not in message
    assert "problems" not in message


def test_verls_own_engine_and_configuration_name_are_nothing_to_refuse() -> None:
    resolved = load(["model_engine=dp", "--config-name=ppo_trainer", f"{A}.strategy=fsdp2"])
    assert [key.path for key in resolved.ignored] == ["model_engine"]


def test_a_token_budget_is_that_of_all_devices_that_share_a_sequence() -> None:
    """verl's script for Qwen3-Next: 8 x 2,816 = 22,528 = prompt 2,048 + answer 20,480."""
    words = ["data.max_prompt_length=2048", "data.max_response_length=20480", f"{A}.ppo_max_token_len_per_gpu=2816"]
    load([*words, f"{A}.fsdp_config.ulysses_sequence_parallel_size=8"])
    assert "times ulysses_sequence_parallel_size = 4" in refusal(*words, f"{A}.ulysses_sequence_parallel_size=4")
    assert "2816 (command line)\n      is below" in refusal(*words)


@pytest.mark.parametrize("name", ["gmpo", "geometric_mean"])
def test_the_papers_name_of_the_loss_leads_to_verls(name: str) -> None:
    assert "geo_mean" in refusal(f"{A}.policy_loss.loss_mode={name}")
    assert "gspo" not in refusal(f"{A}.policy_loss.loss_mode={name}").split("Allowed")[0]


def test_one_answer_a_problem_without_an_estimator_means_verls_default() -> None:
    config = load([f"{R}.n=1"]).config
    assert (config.algorithm.adv_estimator, config.critic.enable) == ("gae", True)
    assert "nothing to compare" in refusal(f"{R}.n=1", "algorithm.adv_estimator=grpo")


def test_two_names_of_one_setting_on_the_command_line_contradict_each_other() -> None:
    load(["critic.fsdp.param_offload=True", "critic.model.fsdp_config.param_offload=True"])
    assert "given both as" in refusal("critic.fsdp.param_offload=True", "critic.model.fsdp_config.param_offload=False")
