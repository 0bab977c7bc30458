#!/usr/bin/env bash
# Runs a command that outlives the connection which started it; tpu_pod.sh calls it on each host. In the working folder:
#   bash background.sh start COMMAND [ARGUMENT ...]     (stops the one before)
#   bash background.sh log                              shows what it writes until it ends, and ends with its exit code
#   bash background.sh stop                             SIGTERM, which saves a checkpoint; waits for the end
set -eo pipefail
runs() { [ -e pid ] && [ ! -e exit_code ] && kill -0 "$(cat pid)" 2>/dev/null; }
stop() {
  ! runs || kill -TERM "$(cat pid)"
  while runs; do sleep 1; done
}
case ${1:-} in
start)
  shift
  stop
  rm -f exit_code pid
  # shellcheck disable=SC2016  # for the other shell to expand
  setsid bash -c '"$@" & echo $! >pid; code=0; wait $! || code=$?; echo $code >exit_code' background "$@" \
    >log 2>&1 </dev/null &
  until [ -s pid ]; do sleep 0.1; done
  ;;
log)
  tail --pid="$(cat pid)" -n +1 -f log
  sleep 1
  [ -s exit_code ] || { echo "$0: killed" >&2; exit 137; }
  exit "$(cat exit_code)"
  ;;
stop) stop ;;
*)
  echo "usage: $0 start COMMAND [ARGUMENT ...] | log | stop" >&2
  exit 2
  ;;
esac
