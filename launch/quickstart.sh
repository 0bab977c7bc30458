#!/usr/bin/env bash
# The main job: joins the packaged encoder and language model by an adapter, trained here on recorded telephone prompts
# in five languages, and scores it on sentences that none of the three was trained on.
#   bash launch/quickstart.sh [DIR] [--dry_run]      (default: runs/quickstart; run it again to go on where it stopped)
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
out=$(realpath -m "${1:-runs/quickstart}")
source "$checkout/launch/environment.sh"
slm_jax() { run "$VENV/bin/slm-jax" "$@"; }
slm_jax prepare voice_prompts
slm_jax train --gin_file=runs/slm_tiny_voice_prompts.gin --gin.MODEL_DIR="$(gin_text "$out")"
slm_jax evaluate "$out" --task voice_prompts --split test --max_seconds 120 --out "$out/report"
run echo "Report: $out/report/report.html"
