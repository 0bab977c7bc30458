#!/usr/bin/env bash
# Trains on the TPU VM on which it runs: bash launch/tpu_vm.sh GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]
# All else is as with train.sh. On a slice of several hosts, tpu_pod.sh runs it on each of them, with --multihost.
EXTRAS='[tpu,gcs]' exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" "$@"
