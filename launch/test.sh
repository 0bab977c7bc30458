#!/usr/bin/env bash
# Style, types and the tests, in an environment of their own: bash launch/test.sh
# With pytest's arguments, these tests alone: bash launch/test.sh -m slow
set -eo pipefail
EXTRAS='[dev]'
VENV=${VENV:-.venv-test}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$VENV" && pwd)/compilation_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}  # libtpu is there to compile with, and would be started by every process
if [ $# -eq 0 ]; then
  "$VENV/bin/ruff" check --quiet .
  "$VENV/bin/ruff" format --check --quiet .
  "$VENV/bin/mypy" --no-error-summary
  # Most of the time goes into compiling what runs once: LLVM does half the work. The long proofs run as everything else does.
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
  set -- -m 'not slow'
fi
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile -q "$@"
