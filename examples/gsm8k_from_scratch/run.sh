#!/usr/bin/env bash
# GSM8K end to end on a CPU without any download of weights: a small random model, a warm-up on the solutions, 20 steps
# of GMPO with a reward function of our own. Some ten minutes on two cores. The model is far too small to solve GSM8K:
# what it shows is the loop on real rows.
#
#   gmpo data gsm8k --out data            # or --from a local copy
#   examples/gsm8k_from_scratch/run.sh data OUT [KEY=VALUE ...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
shift 2

if [ ! -e "$out/model/config.json" ]; then
    python3 "$here/make_model.py" "$data/train.parquet" "$out/model"
fi
# A finished warm-up ends at once; one that was interrupted begins again. Either ends the script where it stops.
gmpo sft \
    model.path="$out/model" \
    data.train_files="$data/train.parquet" \
    data.train_batch_size=32 \
    data.max_length=512 \
    data.truncation=right \
    optim.lr=3e-3 \
    optim.min_lr_ratio=0.1 \
    trainer.total_epochs=2 \
    trainer.default_local_dir="$out/warm-up"
gmpo train recipe=gmpo \
    actor_rollout_ref.model.path="$out/warm-up/huggingface" \
    actor_rollout_ref.model.enable_gradient_checkpointing=False \
    data.train_files="$data/train.parquet" \
    data.val_files="$data/test.parquet" \
    data.val_max_samples=64 \
    data.train_batch_size=16 \
    data.max_prompt_length=256 \
    data.max_response_length=192 \
    data.filter_overlong_prompts=True \
    custom_reward_function.path="$here/reward.py" \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.actor.ppo_mini_batch_size=4 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \
    actor_rollout_ref.actor.optim.lr=1e-4 \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    trainer.total_training_steps=20 \
    trainer.test_freq=10 \
    trainer.save_freq=10 \
    trainer.default_local_dir="$out/run" \
    "$@"
