"""`critic.*`: there exactly when the estimator needs one, following the actor where it has no value of its own."""

from __future__ import annotations

from typing import Any

import pytest

from gmpo.config import Config, load
from gmpo.config.tree import get, leaves
from gmpo.errors import ConfigError

A = "actor_rollout_ref.actor"
M = "actor_rollout_ref.model"
PPO = "recipe=ppo"


def value(path: str, *overrides: str) -> Any:
    return get(load([PPO, *overrides]).config, path)


def inert(*overrides: str) -> set[str]:
    return {note.path for note in load(overrides).inert}


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    message = str(caught.value)
    assert message.startswith("1 problem in the configuration:")
    return message


# --- whether there is one ----------------------------------------------------------------------------------------


def test_without_an_estimator_that_needs_it_every_key_of_the_critic_is_inert() -> None:
    given = {path: leaf.field.default for path, leaf in leaves(Config).items() if path.startswith("critic.")}
    given |= {"critic.enable": False, "critic.model.path": "m", "critic.ppo_epochs": 2, "critic.shuffle": True}
    given |= {"critic.data_loader_seed": 3, "critic.use_dynamic_bsz": True, "critic.loss_agg_mode": "token-mean"}
    given |= {"critic.ppo_mini_batch_size": 256, "critic.forward_max_token_len_per_gpu": 9}
    given |= {"critic.model.trust_remote_code": False, "critic.model.override_config": {"a": 1}}
    resolved = load(tree={**given, "trainer.critic_warmup": 3})
    assert resolved.honoured <= {"critic.enable"}
    reasons = {note.path: note.reason for note in resolved.inert}
    assert set(reasons) == resolved.given - {"critic.enable"}
    assert reasons["critic.cliprange_value"] == "algorithm.adv_estimator=grpo needs no critic, so there is none"
    assert reasons["trainer.critic_warmup"] == reasons["critic.cliprange_value"]
    assert load([PPO, "trainer.critic_warmup=3", "critic.cliprange_value=0.2"]).inert == ()


def test_the_switch_may_only_say_what_the_estimator_says() -> None:
    assert value("critic.enable") is value("critic.enable", "critic.enable=True") is True
    assert load(["critic.enable=False"]).honoured == {"critic.enable"}
    assert "has nothing to do with algorithm.adv_estimator=grpo; gae would use a critic" in refused(
        "critic.enable=True"
    )
    assert "takes away what algorithm.adv_estimator=gae" in refused(PPO, "critic.enable=False")


def test_checkpoints_of_the_critic_follow_those_of_the_actor() -> None:
    given = {"trainer.max_critic_ckpt_to_keep=2", "critic.checkpoint.save_contents=[model]"}
    assert inert(PPO, *given) == {item.partition("=")[0] for item in given}


# --- what it follows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("ppo_mini_batch_size", "128", 128),
        ("ppo_epochs", "3", 3),
        ("shuffle", "True", True),
        ("data_loader_seed", "9", 9),
        ("loss_agg_mode", "seq-mean-token-mean", "seq-mean-token-mean"),
    ],
)
def test_a_key_follows_the_actor_unless_it_is_given(key: str, written: str, expected: object) -> None:
    default = load().config.actor_rollout_ref.actor
    assert value(f"critic.{key}", f"{A}.{key}={written}") == expected
    assert value(f"critic.{key}", f"critic.{key}={written}") == expected
    assert value(f"{A}.{key}", f"critic.{key}={written}") == getattr(default, key)


def test_the_defaults_are_those_of_verl() -> None:
    critic = load([PPO]).config.critic
    assert (critic.optim.lr, critic.cliprange_value, critic.grad_clip) == (1e-5, 0.5, 1.0)
    assert (critic.ppo_max_token_len_per_gpu, critic.forward_max_token_len_per_gpu) == (32768, 32768)
    assert critic.optim.weight_decay == load().config.actor_rollout_ref.actor.optim.weight_decay


def test_the_critic_starts_from_the_policy_and_says_so() -> None:
    resolved = load([PPO, f"{M}.path=m", f"{M}.trust_remote_code=True", f"{M}.override_config.a=1"])
    model = resolved.config.critic.model
    assert (model.path, model.trust_remote_code, model.override_config) == ("m", True, {"a": 1})
    whys = {item.path: item.why for item in resolved.derived}
    assert whys["critic.model.path"] == f"follows {M}.path"


def test_another_folder_inherits_neither_trust_nor_changes() -> None:
    given = (f"{M}.path=m", f"{M}.trust_remote_code=True", f"{M}.override_config.a=1", "critic.model.path=other")
    model = load([PPO, *given]).config.critic.model
    assert (model.trust_remote_code, model.override_config) == (False, {})
    assert value("critic.model.trust_remote_code", *given, "critic.model.trust_remote_code=True") is True


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), (True, None, None)),
        ((f"{A}.ppo_micro_batch_size_per_gpu=16",), (False, 16, 16)),
        (("critic.ppo_micro_batch_size_per_gpu=8",), (False, 8, 8)),
        (("critic.ppo_micro_batch_size=8",), (False, 8, 8)),
        (("critic.ppo_micro_batch_size_per_gpu=8", "critic.forward_micro_batch_size_per_gpu=32"), (False, 8, 32)),
        ((f"{A}.ppo_micro_batch_size_per_gpu=16", "critic.use_dynamic_bsz=True"), (True, 16, 16)),
    ],
)
def test_micro_batches_follow_the_actor_unless_the_critic_has_its_own(
    overrides: tuple[str, ...], expected: tuple[bool, int | None, int | None]
) -> None:
    critic = load([PPO, *overrides]).config.critic
    found = (critic.use_dynamic_bsz, critic.ppo_micro_batch_size_per_gpu, critic.forward_micro_batch_size_per_gpu)
    assert found == expected


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["critic.ppo_mini_batch_size=2048"], "critic.ppo_mini_batch_size = 2048 (command line)\n      is larger than"),
        (["critic.ppo_micro_batch_size_per_gpu=7"], "does not divide the 256 answers of a mini-batch"),
        (["critic.ppo_micro_batch_size=8", "critic.ppo_micro_batch_size_per_gpu=8"], "is deprecated"),
        (["critic.ppo_max_token_len_per_gpu=1000", "critic.forward_max_token_len_per_gpu=2000"], "= 1024 tokens"),
        (["critic.ppo_max_token_len_per_gpu=1000"], "critic.ppo_max_token_len_per_gpu = 1000"),
        (["critic.forward_max_token_len_per_gpu=1000"], "critic.forward_max_token_len_per_gpu = 1000"),
        (["critic.optim.betas=[0.9,1.0]"], "must be two numbers >= 0 and < 1"),
        (["critic.cliprange_value=0"], "must be a number > 0"),
        # What the critic only follows is reported once, at the actor's key.
        ([f"{A}.ppo_mini_batch_size=2048"], f"{A}.ppo_mini_batch_size = 2048"),
        ([f"{A}.ppo_micro_batch_size_per_gpu=7"], f"{A}.ppo_micro_batch_size_per_gpu = 7"),
    ],
)
def test_impossible_sizes_are_refused_once(overrides: list[str], reason: str) -> None:
    assert reason in refused(PPO, *overrides)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("critic.data_loader_seed=3", "critic.shuffle=True"),
        ("critic.optim.min_lr_ratio=0.1", "critic.optim.lr_scheduler_type=linear"),
        ("critic.ppo_max_token_len_per_gpu=9999", "critic.use_dynamic_bsz=True"),
        ("critic.forward_max_token_len_per_gpu=9999", "critic.use_dynamic_bsz=True"),
        ("critic.ppo_micro_batch_size_per_gpu=8", "critic.use_dynamic_bsz=False"),
        ("critic.forward_micro_batch_size_per_gpu=8", "critic.ppo_micro_batch_size_per_gpu=8"),
    ],
)
def test_a_key_of_the_critic_is_inert_until_what_it_needs_is_on(written: str, remedy: str) -> None:
    path = written.partition("=")[0]
    off = {
        "critic.ppo_max_token_len_per_gpu": ["critic.ppo_micro_batch_size_per_gpu=8"],
        "critic.forward_max_token_len_per_gpu": ["critic.ppo_micro_batch_size_per_gpu=8"],
        "critic.ppo_micro_batch_size_per_gpu": ["critic.use_dynamic_bsz=True"],
    }.get(path, [])
    assert path in inert(PPO, *off, written)
    assert path not in inert(PPO, remedy, written)
