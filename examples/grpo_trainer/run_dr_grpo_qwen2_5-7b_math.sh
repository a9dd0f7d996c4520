#!/usr/bin/env bash
# Dr. GRPO on Qwen2.5-Math-7B with MATH's levels 3 to 5: no division by the group's standard deviation nor by an
# answer's length (the sum over tokens is divided by a constant, the longest answer), no KL term.
# For 8 GPUs. The same as `gmpo train recipe=dr_grpo_qwen2_5_math_7b`. What it needs, and whether it fits:
#
#     MODEL=/models/Qwen2.5-Math-7B examples/grpo_trainer/run_dr_grpo_qwen2_5-7b_math.sh --check
#
# Data, once:
#
#     gmpo data math_lvl3to5 --from FILE --out ~/data/math_lvl3to5
#     gmpo data math500 --out ~/data/math500
#     gmpo data aime24 --out ~/data/aime24
#
# Further words win over those here: trainer.total_epochs=1, say. Until several GPUs and vLLM are supported the run is
# refused with the list of what is missing; --check works, and examples/rehearse.py runs it in small on a laptop.
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-Math-7B}
DATA=${DATA:-$HOME/data}
program=train
if [ "${1:-}" = --check ]; then
    program=check
    shift
fi

gmpo "$program" \
    algorithm.adv_estimator=grpo \
    algorithm.norm_adv_by_std_in_grpo=False \
    algorithm.use_kl_in_reward=False \
    data.train_files="$DATA/math_lvl3to5/train.parquet" \
    data.val_files="['$DATA/math500/test.parquet', '$DATA/aime24/test.parquet']" \
    data.train_batch_size=128 \
    data.max_prompt_length=1024 \
    data.max_response_length=3000 \
    data.filter_overlong_prompts=True \
    data.truncation=error \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
    actor_rollout_ref.actor.loss_scale_factor=3000 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=16 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16 \
    trainer.project_name=dr_grpo_math \
    trainer.experiment_name=dr_grpo_qwen2_5_math_7b \
    trainer.nnodes=1 \
    trainer.n_gpus_per_node=8 \
    trainer.total_epochs=20 \
    trainer.save_freq=20 \
    trainer.test_freq=16 \
    "$@"
