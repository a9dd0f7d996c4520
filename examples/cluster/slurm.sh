#!/bin/bash
#SBATCH --job-name=gmpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Two nodes of 8 GPUs:  sbatch examples/cluster/slurm.sh recipe=gmpo actor_rollout_ref.model.path=MODEL ...
#
# Slurm starts Ray on every node; `gmpo train` runs here, on the first of them. 300 s before the time is up the run is told,
# saves, and ends with status 75; the job is queued again and goes on from there. `B:` sends the signal to this script
# alone: Ray's processes would die of it. RUN_FOLDER must lie where every node sees it.
set -euo pipefail

nodes=${SLURM_JOB_NUM_NODES:?this script is for sbatch}
gpus=${SLURM_GPUS_ON_NODE:-8}
run=${RUN_FOLDER:-$SLURM_SUBMIT_DIR/runs/$SLURM_JOB_ID}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${head%%$'\n'*}
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address=${address%% *}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs that share a node must not share it

RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
RAY_ADDRESS=$address:$port
RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_ADDRESS RAY_USAGE_STATS_ENABLED

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="$address" --port="$port" --num-gpus="$gpus" --include-dashboard=false --block &
if ((nodes > 1)); then
  srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" \
    ray start --address="$RAY_ADDRESS" --num-gpus="$gpus" --block &
fi
python "$SLURM_SUBMIT_DIR/examples/cluster/wait_for_ray.py" $((nodes * gpus))

gmpo train trainer.nnodes="$nodes" trainer.n_gpus_per_node="$gpus" trainer.default_local_dir="$run" "$@" &
driver=$!
trap 'kill -USR1 "$driver"' USR1
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait`, not the run
  status=0
  wait "$driver" || status=$?
done
if ((status == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
