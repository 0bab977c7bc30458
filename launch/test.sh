#!/usr/bin/env bash
# The tests, in an environment of their own: bash launch/test.sh [pytest arguments]
set -eo pipefail
EXTRAS='[dev]'
VENV=${VENV:-.venv-test}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$VENV" && pwd)/compilation_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
[ $# -gt 0 ] || set -- -m 'not slow'
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile -q "$@"
