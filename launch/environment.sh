# Sourced by the scripts beside it: makes the virtual environment once and brings the package into it.
# VENV (default: .venv in the checkout) says where, PYTHON which interpreter, EXTRAS what else ('[dev]').
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
VENV=${VENV:-.venv}

fail() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 1
}

if [ ! -x "$VENV/bin/pip" ]; then
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      found=$candidate
      break
    fi
  done
  [ -n "${found:-}" ] || fail 'no Python from 3.11 to 3.13 on the PATH. Install one, or name it: PYTHON=/path/to/python3.11'
  rm -rf "$VENV"
  "$found" -m venv "$VENV" || { rm -rf "$VENV"; fail "$found cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv). Then run the same command again."; }
fi

# A line per requirement: installed again only when one of these files has changed, or an installation was cut.
stamp=$(cat pyproject.toml setup.py constraints.txt | cksum)${EXTRAS:-}
if [ "$(cat "$VENV/installed" 2>/dev/null)" != "$stamp" ]; then
  rm -f "$VENV/installed"
  echo 'Installing (some minutes the first time) ...'
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${EXTRAS:-}" ||
    fail 'the installation did not finish (network? disk?). Run the same command again: it goes on from what is there.'
  echo "$stamp" >"$VENV/installed"
fi

# As the console script does for itself (slm_jax/cli.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
