#!/usr/bin/env bash
# Style, types and the tests, in an environment of their own: bash launch/test.sh [--dry_run]
# With pytest's arguments, these tests alone: bash launch/test.sh -m slow
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
EXTRAS='[dev]'
VENV=${VENV:-$checkout/.venv-test}
source "$checkout/launch/environment.sh"
run cd "$checkout"
run export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$VENV/compilation_cache}"
run export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# libtpu is there to compile with, and would be started by every process.
run export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
if [ $# -eq 0 ]; then
  run "$VENV/bin/ruff" check --quiet .
  run "$VENV/bin/ruff" format --check --quiet .
  run "$VENV/bin/mypy" --no-error-summary
  # Most of the time goes into compiling what runs once: LLVM does the least, once for a program. The long proofs run as
  # all else does.
  quick='--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  quick+=' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
  run export XLA_FLAGS="${XLA_FLAGS:-} $quick"
  set -- -m 'not slow'
fi
run "$VENV/bin/python" -m pytest -n 2 --dist loadfile -q "$@"
