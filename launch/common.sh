# shellcheck shell=bash
# Sourced first by the scripts beside it: --dry_run, what is quoted, and starting again what is worth starting again.
# shellcheck disable=SC2034  # the scripts use it
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 2
}

# --dry_run may stand anywhere among the script's arguments, which a sourced file shares.
dry_run='' arguments=()
for argument in "$@"; do
  if [ "$argument" = --dry_run ]; then dry_run=1; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"

# A command as one may type it.
quoted() {
  local word line=''
  for word in "$@"; do
    case $word in
    '' | *[!A-Za-z0-9_@%+=:,./-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
    *) line+=" $word" ;;
    esac
  done
  printf '%s' "${line# }"
}

# Runs a command; with --dry_run prints it, and nothing is run.
run() {
  if [ -z "$dry_run" ]; then "$@"; else printf '%s\n' "$(quoted "$@")"; fi
}

# A text as gin reads it.
gin_text() {
  local text=${1//\\/\\\\}
  printf "'%s'" "${text//\'/\\\'}"
}

# Sets `files`: what the hosts need of the caller's own, which is what FILES names, and gin files among the arguments.
own_files() {
  local file
  read -ra files <<<"${FILES:-}"
  for file in "$@"; do
    file=${file#--gin_file=}
    if [[ $file = *.gin && -f $file ]]; then files+=("$file"); fi
  done
  for file in "${files[@]}"; do
    [ -e "$file" ] || fail "FILES: $file is not there."
    case $file in
    /* | ../* | */../*) fail "$file: give it by a path below the working directory; it is sent along." ;;
    esac
  done
}

# Refuses a MODEL_DIR that would be another on each host.
shared_dir() {
  case $1 in
  *://* | /*) ;;
  *)
    fail "MODEL_DIR is $1: the hosts are other machines." \
      'Give a bucket (gs://BUCKET/...), or where they have mounted a shared disk (/...).'
    ;;
  esac
}

# The exit codes of `slm-jax train` after which the same command goes on (docs/pods.md): a signal ended it when its
# checkpoint was saved; another host was lost. Not NaN (1), and not a configuration that cannot work (2).
means_again() { [ "$1" = 143 ] || [ "$1" = 75 ]; }

# Runs a command, and runs it again while its exit code means that, at most MAX_RESTARTS times. SIGTERM and Ctrl-C go to
# the command, and end it for good.
again() {
  if [ -n "$dry_run" ]; then run "$@"; return; fi
  local count=0 code child stopped=''
  trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM INT
  while true; do
    "$@" &
    child=$! code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended the waiting and not the command
      code=0
      wait "$child" || code=$?
    done
    if [ -n "$stopped" ] || ! means_again "$code" || [ "$count" -ge "${MAX_RESTARTS:-100}" ]; then return "$code"; fi
    count=$((count + 1))
    printf '%s: ended with %s: starting it again in %s s (%s of %s)\n' \
      "$0" "$code" "${RESTART_SECONDS:-10}" "$count" "${MAX_RESTARTS:-100}" >&2
    sleep "${RESTART_SECONDS:-10}" &
    wait $! || return "$code"
  done
}
