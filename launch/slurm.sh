#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster; run on its login node, from a checkout on a disk that all nodes see:
#   bash launch/slurm.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]
# Shortly before the time limit, when preempted, and when a node fails, the job goes back into the queue and on later.
set -eo pipefail

# Settings; SBATCH is for anything else that sbatch takes.
NODES=${NODES:-2}
GPUS=${GPUS:-8} # of a node
TIME=${TIME:-24:00:00}
PARTITION=${PARTITION:-}
MAX_RESTARTS=${MAX_RESTARTS:-100}
SBATCH=${SBATCH:-}

if [ "${1:-}" = --job ]; then # sbatch runs a copy of this file, so it is told where the checkout is
  source "$2/launch/common.sh"
  shift 2
  trap : TERM # the training gets the signal as well, and saves
  code=0
  # One process a node, as on TPUs. Of the GPUs of a node, JAX would by itself take one for each process.
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1))) srun --kill-on-bad-exit=0 --wait=0 "$@" || code=$?
  if means_again "$code" && [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || fail 'usage: bash launch/slurm.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]'
gin_file=$1 model_dir=$2
shift 2
EXTRAS='[cuda]'
source "$checkout/launch/environment.sh"
read -ra others <<<"$SBATCH"
run export GPUS="$GPUS" MAX_RESTARTS="$MAX_RESTARTS"
run sbatch --job-name=slm_jax --nodes="$NODES" --ntasks-per-node=1 --gres="gpu:$GPUS" --exclusive --time="$TIME" \
  ${PARTITION:+"--partition=$PARTITION"} --requeue --signal=TERM@300 --open-mode=append --output=slm_jax-%j.log \
  "${others[@]}" "$checkout/launch/slurm.sh" --job "$checkout" \
  "$VENV/bin/slm-jax" train --gin_file="$gin_file" --gin.MODEL_DIR="$(gin_text "$model_dir")" "$@" --multihost
