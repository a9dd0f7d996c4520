#!/usr/bin/env bash
# GMPO with DAPO's data and length penalty on Qwen2.5-Math-7B: 512 problems x 16 answers of up to 8192 tokens a step in
# 16 updates.
# For 64 GPUs. The same as `gmpo train recipe=gmpo_dapo_qwen2_5_7b_math`. What it needs, and whether it fits:
#
#     MODEL=/models/Qwen2.5-Math-7B examples/gmpo_trainer/test_dapo_7b_math.sh --check
#
# Data, once:
#
#     gmpo data dapo_math_17k --out ~/data/dapo_math_17k
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
    algorithm.use_kl_in_reward=False \
    data.train_files="$DATA/dapo_math_17k/train.parquet" \
    data.val_files="$DATA/aime24/test.parquet" \
    data.prompt_key=prompt \
    data.train_batch_size=512 \
    data.max_prompt_length=2048 \
    data.max_response_length=8192 \
    data.truncation=left \
    actor_rollout_ref.model.path="$MODEL" \
    +actor_rollout_ref.model.override_config.max_position_embeddings=32768 \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean \
    actor_rollout_ref.actor.clip_ratio_low=0.4 \
    actor_rollout_ref.actor.clip_ratio_high=0.4 \
    actor_rollout_ref.actor.loss_agg_mode=token-mean \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.actor.optim.weight_decay=0.1 \
    actor_rollout_ref.actor.grad_clip=1.0 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20480 \
    actor_rollout_ref.actor.ulysses_sequence_parallel_size=4 \
    actor_rollout_ref.actor.fsdp_config.fsdp_size=32 \
    actor_rollout_ref.actor.fsdp_config.param_offload=True \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.top_k=-1 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=4 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.80 \
    actor_rollout_ref.rollout.enable_chunked_prefill=True \
    actor_rollout_ref.rollout.max_num_batched_tokens=10240 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=30720 \
    actor_rollout_ref.rollout.val_kwargs.do_sample=True \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    actor_rollout_ref.rollout.val_kwargs.top_p=0.7 \
    actor_rollout_ref.rollout.val_kwargs.top_k=-1 \
    actor_rollout_ref.rollout.val_kwargs.n=1 \
    reward_model.reward_manager=dapo \
    +reward_model.reward_kwargs.overlong_buffer_cfg.enable=True \
    +reward_model.reward_kwargs.overlong_buffer_cfg.len=4096 \
    +reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0 \
    +reward_model.reward_kwargs.max_resp_len=8192 \
    trainer.project_name=gmpo_dapo \
    trainer.experiment_name=gmpo_dapo_qwen2_5_7b_math \
    trainer.nnodes=8 \
    trainer.n_gpus_per_node=8 \
    trainer.total_epochs=10 \
    trainer.total_training_steps=200 \
    trainer.save_freq=10 \
    trainer.test_freq=10 \
    trainer.val_before_train=True \
    trainer.resume_mode=auto \
    trainer.log_val_generations=10 \
    "$@"
