# shellcheck shell=bash
# Sourced by the scripts beside it, after common.sh: makes the virtual environment once and brings the package into it.
# VENV (default: .venv in the checkout) says where, PYTHON which interpreter, EXTRAS what else ('[dev]').
VENV=${VENV:-$checkout/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac

if [ ! -x "$VENV/bin/pip" ]; then
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      found=$candidate
      break
    fi
  done
  [ -n "${found:-}" ] ||
    fail 'no Python from 3.11 to 3.13 on the PATH. Install one (on a TPU VM: sudo apt install' \
      'python3.11-venv), or name it: PYTHON=/path/to/python3.11'
  run rm -rf "$VENV"
  run "$found" -m venv "$VENV" || {
    rm -rf "$VENV"
    fail "$found cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." \
      'Then run the same command again.'
  }
fi

# A line per requirement: installed again only when one of these files has changed, or an installation was cut.
stamp=$(cat "$checkout"/{pyproject.toml,setup.py,constraints.txt} | cksum | tr ' ' -)${EXTRAS:-}
if [ ! -e "$VENV/installed.$stamp" ]; then
  run find "$VENV" -maxdepth 1 -name 'installed*' -delete
  [ -n "$dry_run" ] || echo 'Installing (some minutes the first time) ...'
  run "$VENV/bin/pip" install --quiet --disable-pip-version-check --constraint "$checkout/constraints.txt" \
    --editable "$checkout${EXTRAS:-}" ||
    fail 'the installation did not finish (network? disk?). Run the same command again: it goes on from what is there.'
  run touch "$VENV/installed.$stamp"
fi

# As the console script does for itself (slm_jax/cli.py).
run export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
