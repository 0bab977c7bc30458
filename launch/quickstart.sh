#!/usr/bin/env bash
# The main job: joins the packaged encoder and language model by an adapter, trained here on recorded telephone prompts
# in five languages, and scores it on sentences that none of the three was trained on.
#   bash launch/quickstart.sh [DIR]      (default: runs/quickstart; run it again to go on where it stopped)
set -eo pipefail
out=$(realpath -m "${1:-runs/quickstart}")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
run() { "$VENV/bin/slm-jax" "$@"; }
run prepare voice_prompts
run train --gin_file=runs/slm_tiny_voice_prompts.gin --gin.MODEL_DIR="'$out'"
run evaluate "$out" --task voice_prompts --split test --max_seconds 120 --out "$out/report"
echo "Report: $out/report/report.html"
