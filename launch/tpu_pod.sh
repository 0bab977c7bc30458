#!/usr/bin/env bash
# Trains on a TPU slice of several hosts, or on several slices; run on your own machine, which reaches them by gcloud:
#   bash launch/tpu_pod.sh create         asks for the slices (a queued resource) and waits until they are there
#   bash launch/tpu_pod.sh train GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...]
#                                         copies the code to every host, starts it there, shows what the first one says
#   bash launch/tpu_pod.sh keep GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...]
#                                         both; and again, with new slices, when these are taken away
#   bash launch/tpu_pod.sh log            shows again what the first host says; what was started goes on without it
#   bash launch/tpu_pod.sh run COMMAND    runs a command line on every host, beside the code, and waits for its end
#   bash launch/tpu_pod.sh stop           saves a checkpoint and ends the training
#   bash launch/tpu_pod.sh delete         gives the slices back: only then do they cost nothing more
# --dry_run prints the commands and runs none. MODEL_DIR is a bucket (gs://...), since the hosts share no disk. Gin
# files of your own are copied along, and so is what FILES names.
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Settings.
NAME=${NAME:-slm-jax}
ZONE=${ZONE:-us-east5-a}
ACCELERATOR=${ACCELERATOR:-v5p-32} # v5litepod-32 and v6e-32 count chips; v4-32 and v5p-32 cores, two a chip
RUNTIME=${RUNTIME:-v2-alpha-tpuv5} # v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e, tpu-ubuntu2204-base for v4
SLICES=${SLICES:-1}
TIER=${TIER---spot}     # --spot may be taken away at any time; --reserved; nothing: on demand
FILES=${FILES:-}        # what else the run reads: paths below the working directory, with spaces between them
POLL_SECONDS=${POLL_SECONDS:-60}
# What each host needs before: the images of TPU VMs have Python 3.10.
apt='sudo apt-get -qy -o DPkg::Lock::Timeout=600'
SETUP=${SETUP-"command -v python3.11 || ($apt update && $apt install python3.11-venv)"}

tpus() { run gcloud compute tpus "$@" --zone="$ZONE"; }
nodes() { if [ "$SLICES" = 1 ]; then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi; }
state() { tpus queued-resources describe "$NAME" --format='value(state.state)'; }

# Runs a command line on every host.
on_hosts() {
  local node
  for node in $(nodes); do tpus tpu-vm ssh "$node" --worker=all --command="$1"; done
}

create() {
  local names=("--node-id=$NAME")
  [ "$SLICES" = 1 ] || names=("--node-count=$SLICES" "--node-prefix=$NAME")
  tpus queued-resources create "$NAME" "${names[@]}" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform ${TIER:+"$TIER"}
  if [ -n "$dry_run" ]; then state; return; fi
  local now=''
  until [ "$now" = ACTIVE ]; do
    now=$(state)
    echo "$NAME: $now"
    case $now in
    ACTIVE) ;;
    *FAILED* | *SUSPEND* | *DELETING*)
      fail "$NAME is $now and will not come; this says why: gcloud compute tpus queued-resources describe" \
        "$NAME --zone=$ZONE. Then: bash launch/tpu_pod.sh delete, and create again."
      ;;
    *) sleep "$POLL_SECONDS" ;;
    esac
  done
}

delete() { tpus queued-resources delete "$NAME" --force --quiet; }
log() {
  tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command='cd run && bash ../slm_jax/launch/background.sh log'
}

train() {
  [ $# -ge 2 ] || fail 'usage: bash launch/tpu_pod.sh train GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]'
  shared_dir "$2"
  local files node bundle=${TMPDIR:-/tmp}/slm_jax.$NAME
  own_files "$@"
  [ ${#files[@]} -gt 0 ] || files=(-T /dev/null)
  run mkdir -p "$bundle"
  run tar -cf "$bundle/slm_jax.tar" --exclude=__pycache__ -C "$checkout" \
    slm_jax tasks gin launch pyproject.toml setup.py constraints.txt README.md
  run tar -cf "$bundle/run.tar" "${files[@]}"
  for node in $(nodes); do
    tpus tpu-vm scp "$bundle/slm_jax.tar" "$bundle/run.tar" "$node:" --worker=all
  done
  run rm -r "$bundle"
  [ -z "$SETUP" ] || on_hosts "$SETUP"
  on_hosts "[ ! -e run/pid ] || (cd run && bash ../slm_jax/launch/background.sh stop)"
  on_hosts "rm -rf slm_jax && mkdir -p slm_jax run && \
tar -xf slm_jax.tar -C slm_jax && tar -xf run.tar -C run && cd run && \
VENV=../venv bash ../slm_jax/launch/background.sh start bash ../slm_jax/launch/tpu_vm.sh $(quoted "$@") --multihost"
  log
}

keep() {
  local now code last
  while true; do
    if [ -n "$dry_run" ]; then state; fi
    now=$(if [ -z "$dry_run" ]; then state 2>/dev/null; fi) || true
    case $now in
    ACTIVE) ;;
    '') create ;;
    *)
      delete
      create
      ;;
    esac
    code=0 last=''
    bash "$0" train "$@" ${dry_run:+--dry_run} || code=$?
    # The slices were taken away, or the connection broke, or it is what the training ended with: then twice the same.
    while [ "$code" != "$last" ]; do
      [ "$code" != 0 ] || return 0
      sleep "$POLL_SECONDS"
      [ "$(state)" = ACTIVE ] || continue 2
      last=$code code=0
      bash "$0" log || code=$?
    done
    return "$code"
  done
}

case ${1:-} in
create | train | keep | log | delete) "$@" ;;
run) on_hosts "cd run && ${2:?COMMAND is missing: bash launch/tpu_pod.sh run COMMAND}" ;;
stop) on_hosts 'cd run && bash ../slm_jax/launch/background.sh stop' ;;
*) fail 'usage: bash launch/tpu_pod.sh create | train | keep | log | run | stop | delete (see its first lines)' ;;
esac
