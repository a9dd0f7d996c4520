#!/usr/bin/env bash
# GMPO on Qwen3-8B with GSM8K and MATH, the GMPO example of verl 0.9: 1024 problems x 5 answers of up to 2048 tokens a
# step in 4 updates, log-clip 0.4, KL loss to the reference (k3, 0.001), micro-batches of 24,576 tokens.
# For 8 GPUs. The same as `gmpo train recipe=gmpo_qwen3_8b`. What it needs, and whether it fits:
#
#     MODEL=/models/Qwen3-8B examples/gmpo_trainer/run_qwen3_8b_fsdp.sh --check
#
# Data, once:
#
#     gmpo data gsm8k --out ~/data/gsm8k
#     gmpo data math --out ~/data/math
#
# Further words win over those here: trainer.total_epochs=1, say. Until several GPUs and vLLM are supported the run is
# refused with the list of what is missing; --check works, and examples/rehearse.py runs it in small on a laptop.
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-8B}
DATA=${DATA:-$HOME/data}
program=train
if [ "${1:-}" = --check ]; then
    program=check
    shift
fi

gmpo "$program" \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    data.train_files="['$DATA/gsm8k/train.parquet', '$DATA/math/train.parquet']" \
    data.val_files="['$DATA/gsm8k/test.parquet', '$DATA/math/test.parquet']" \
    data.train_batch_size=1024 \
    data.max_prompt_length=1024 \
    data.max_response_length=2048 \
    data.filter_overlong_prompts=True \
    data.truncation=error \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean \
    actor_rollout_ref.actor.clip_ratio_low=0.4 \
    actor_rollout_ref.actor.clip_ratio_high=0.4 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0.001 \
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576 \
    actor_rollout_ref.actor.fsdp_config.param_offload=False \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=5 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=24576 \
    actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=24576 \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    trainer.project_name=gmpo_gsm8k_math \
    trainer.experiment_name=gmpo_qwen3_8b \
    trainer.nnodes=1 \
    trainer.n_gpus_per_node=8 \
    trainer.total_epochs=15 \
    trainer.save_freq=20 \
    trainer.test_freq=5 \
    "$@"
