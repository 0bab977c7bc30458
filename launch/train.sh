#!/usr/bin/env bash
# Trains on this machine, and goes on by itself after a stop that means it:
#   bash launch/train.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]
# MODEL_DIR may be a bucket (gs://...). The same command again goes on where it stopped.
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Settings: what else to install ([cuda], [tpu]; nothing for a CPU), how often to start again and after what wait.
EXTRAS=${EXTRAS-$(if command -v nvidia-smi >/dev/null; then echo '[cuda]'; fi)}
MAX_RESTARTS=${MAX_RESTARTS:-100}
RESTART_SECONDS=${RESTART_SECONDS:-10}

[ $# -ge 2 ] || fail 'usage: bash launch/train.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]'
gin_file=$1 model_dir=$2
shift 2
source "$checkout/launch/environment.sh"
again "$VENV/bin/slm-jax" train --gin_file="$gin_file" --gin.MODEL_DIR="$(gin_text "$model_dir")" "$@"
