"""Published commands of verl's users, one per objective: each loads, and every key in it is accounted for.

`test_load` holds the whole command of GMPO's example; here stand the keys of others that choose and tune an
objective.
"""

from __future__ import annotations

import pytest

from gmpo.config import load
from gmpo.config.tree import get

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
F = "actor_rollout_ref.ref"

PPO = (
    "algorithm.adv_estimator=gae",
    "data.train_files=['gsm8k/train.parquet', 'math/train.parquet']",
    "data.train_batch_size=1024",
    "actor_rollout_ref.model.path=deepseek-ai/deepseek-llm-7b-chat",
    f"{A}.ppo_mini_batch_size=256",
    f"{A}.ppo_micro_batch_size_per_gpu=16",
    f"{A}.use_kl_loss=False",
    f"{R}.log_prob_micro_batch_size_per_gpu=32",
    "critic.optim.lr=1e-5",
    "critic.model.use_remove_padding=True",
    "critic.model.path=deepseek-ai/deepseek-llm-7b-chat",
    "critic.model.enable_gradient_checkpointing=True",
    "critic.ppo_micro_batch_size_per_gpu=32",
    "critic.model.fsdp_config.param_offload=False",
    "critic.model.fsdp_config.optimizer_offload=False",
    "algorithm.use_kl_in_reward=False",
    "trainer.critic_warmup=0",
)
PPO_WITH_TOKEN_BUDGETS = (
    "algorithm.adv_estimator=gae",
    "data.train_files=a.parquet",
    "data.train_batch_size=4096",
    "actor_rollout_ref.model.path=Qwen/Qwen2-7B-Instruct",
    f"{A}.ppo_mini_batch_size=512",
    f"{A}.use_dynamic_bsz=True",
    f"{A}.ppo_max_token_len_per_gpu=24000",
    f"{R}.log_prob_max_token_len_per_gpu=24000",
    "critic.ppo_max_token_len_per_gpu=98304",
)
GRPO = (
    "algorithm.adv_estimator=grpo",
    "data.train_files=gsm8k/train.parquet",
    "actor_rollout_ref.model.path=Qwen/Qwen3-8B",
    f"{A}.ppo_mini_batch_size=256",
    f"{A}.ppo_micro_batch_size_per_gpu=32",
    f"{A}.use_kl_loss=True",
    f"{A}.kl_loss_coef=0.001",
    f"{A}.kl_loss_type=low_var_kl",
    f"{A}.entropy_coeff=0",
    f"{R}.n=5",
    f"{F}.log_prob_micro_batch_size_per_gpu=32",
    "algorithm.use_kl_in_reward=False",
    "trainer.critic_warmup=0",
)
GMPO_DAPO = (
    "algorithm.adv_estimator=grpo",
    "data.train_files=dapo-math-17k.parquet",
    "data.max_prompt_length=2048",
    "data.max_response_length=8192",
    "data.train_batch_size=512",
    "actor_rollout_ref.model.path=Qwen2.5-Math-7B",
    f"{R}.n=16",
    f"{A}.policy_loss.loss_mode=geo_mean",
    f"{A}.clip_ratio_low=0.4",
    f"{A}.clip_ratio_high=0.4",
    f"{A}.use_dynamic_bsz=True",
    f"{A}.ppo_max_token_len_per_gpu=20480",
    f"{A}.ppo_mini_batch_size=32",
    f"{A}.loss_agg_mode=token-mean",
    f"{R}.top_p=1.0",
    f"{R}.top_k=-1",
)
GSPO = (
    "algorithm.adv_estimator=grpo",
    "data.train_files=['gsm8k/train.parquet']",
    "data.train_batch_size=512",
    "data.max_prompt_length=2048",
    "data.max_response_length=8192",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct",
    f"{A}.policy_loss.loss_mode=gspo",
    f"{A}.clip_ratio_low=0.0003",
    f"{A}.clip_ratio_high=0.0004",
    f"{A}.clip_ratio_c=10.0",
    f"{A}.use_dynamic_bsz=true",
    f"{A}.ppo_max_token_len_per_gpu=20480",
    f"{A}.ppo_mini_batch_size=128",
    f"{A}.loss_agg_mode=seq-mean-token-mean",
    f"{R}.n=16",
)
RLOO = (
    "algorithm.adv_estimator=rloo",
    "data.train_files=gsm8k/train.parquet",
    "actor_rollout_ref.model.path=Qwen/Qwen2-7B-Instruct",
    f"{A}.use_kl_loss=False",
    f"{A}.ppo_micro_batch_size_per_gpu=80",
    f"{R}.n=5",
    f"{F}.log_prob_micro_batch_size_per_gpu=160",
    "algorithm.use_kl_in_reward=True",
    "algorithm.kl_penalty=kl",
    "algorithm.kl_ctrl.kl_coef=0.001",
)


@pytest.mark.parametrize(
    ("command", "without_effect"),
    [
        (
            PPO,
            {
                "critic.model.use_remove_padding",
                "critic.model.fsdp_config.param_offload",
                "critic.model.fsdp_config.optimizer_offload",
            },
        ),
        (PPO_WITH_TOKEN_BUDGETS, set()),
        (GRPO, {"trainer.critic_warmup"}),
        (GMPO_DAPO, {f"{A}.loss_agg_mode"}),
        (GSPO, {f"{A}.loss_agg_mode", f"{A}.clip_ratio_c"}),
        (RLOO, set()),
    ],
    ids=["ppo", "ppo with token budgets", "grpo", "gmpo with dapo", "gspo", "rloo"],
)
def test_a_published_command_trains_and_every_key_without_effect_is_named(
    command: tuple[str, ...], without_effect: set[str]
) -> None:
    resolved = load(command)
    assert {note.path for note in resolved.inert} == without_effect
    assert resolved.honoured == {override.partition("=")[0] for override in command} - without_effect
    assert resolved.unavailable == resolved.warnings == ()


def test_the_published_critic_keeps_its_own_sizes() -> None:
    by_rows, by_tokens = load(PPO).config.critic, load(PPO_WITH_TOKEN_BUDGETS).config.critic
    assert (by_rows.use_dynamic_bsz, by_rows.ppo_micro_batch_size_per_gpu) == (False, 32)
    assert (by_tokens.use_dynamic_bsz, by_tokens.forward_max_token_len_per_gpu) == (True, 98304)
    assert get(load(PPO).config, f"{R}.n") == 1
