#!/usr/bin/env bash
# Trains on the TPU VM on which it runs: bash launch/tpu_vm.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...]
# MODEL_DIR may be a bucket (gs://...). After a preemption the same command goes on.
set -eo pipefail
[ $# -ge 2 ] || { echo "usage: $0 GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...]" >&2; exit 2; }
gin_file=$1 model_dir=$2
shift 2
EXTRAS='[tpu]'
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$VENV/bin/slm-jax" train --gin_file="$gin_file" --gin.MODEL_DIR="'$model_dir'" "$@"
