#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that has JobSet; run on your own machine, with docker and kubectl:
#   bash launch/gke.sh build              builds the image of this checkout and pushes it
#   bash launch/gke.sh train GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...]
#   bash launch/gke.sh log                shows what the first host says
#   bash launch/gke.sh delete             stops the training, which saves a checkpoint first
# --dry_run prints the commands and runs none. MODEL_DIR is a bucket (gs://...), since the hosts share no disk. Gin
# files of your own are sent along, and so is what FILES names.
set -eo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Settings.
NAME=${NAME:-slm-jax}
IMAGE=${IMAGE:-us-docker.pkg.dev/PROJECT/slm-jax/slm-jax:latest}
TPU=${TPU:-tpu-v5p-slice}                 # tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v4-podslice
TOPOLOGY=${TOPOLOGY:-2x2x4}               # of one slice
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}       # 1, 4 or 8, by the machines of the node pool
SLICES=${SLICES:-1}                       # node pools of that topology; each slice has one to itself
SPOT=${SPOT-true}                         # nothing: on demand
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} # of Kubernetes; it may write to the bucket
FILES=${FILES:-}                          # other texts that the run reads: paths below the working directory
MAX_RESTARTS=${MAX_RESTARTS:-100}
GRACE_SECONDS=${GRACE_SECONDS:-120}       # from SIGTERM to SIGKILL; Spot machines give less

# A text as YAML reads it.
yaml() { printf "'%s'" "${1//\'/\'\'}"; }

# Own files, by number: their texts, or where they lie in the container.
config_map() {
  local number=0 file
  printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\n' "$NAME"
  [ ${#files[@]} = 0 ] || echo 'data:'
  for file in "${files[@]}"; do
    printf '  file%s: |\n%s\n' "$number" "$(sed 's/^/    /' "$file")"
    number=$((number + 1))
  done
}
config_items() {
  local number=0 file
  [ ${#files[@]} -gt 0 ] || printf ' []'
  for file in "${files[@]}"; do
    printf '\n                      - {key: file%s, path: %s}' "$number" "$(yaml "$file")"
    number=$((number + 1))
  done
}

manifest() {
  local hosts argument
  hosts=$((${TOPOLOGY//x/*} / CHIPS_PER_HOST))
  config_map
  cat <<YAML
---
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      - name: cannotWork
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          # NaN and a configuration that cannot work end it for good. Whatever else ends a host starts all again.
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [1, 2]}
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $SERVICE_ACCOUNT
              terminationGracePeriodSeconds: $GRACE_SECONDS
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
${SPOT:+"                cloud.google.com/gke-spot: 'true'
"}              volumes:
                - name: run
                  configMap:
                    name: $NAME
                    items:$(config_items)
              containers:
                - name: train
                  image: $IMAGE
                  workingDir: /run
                  args:
$(for argument in "$@"; do printf '                    - %s\n' "$(yaml "$argument")"; done)
                  volumeMounts:
                    - {name: run, mountPath: /run}
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits: {google.com/tpu: $CHIPS_PER_HOST}
YAML
}

train() {
  [ $# -ge 2 ] || fail 'usage: bash launch/gke.sh train GIN_FILE MODEL_DIR [--gin.NAME=VALUE ...] [--dry_run]'
  shared_dir "$2"
  local gin_file=$1 model_dir=$2 files text
  own_files "$@"
  shift 2
  text=$(manifest train --gin_file="$gin_file" --gin.MODEL_DIR="$(gin_text "$model_dir")" "$@" --multihost)
  if [ -n "$dry_run" ]; then
    printf "kubectl apply -f - <<'MANIFEST'\n%s\nMANIFEST\n" "$text"
  else
    kubectl apply -f - <<<"$text"
  fi
}

case ${1:-} in
build)
  run docker build --file "$checkout/launch/Dockerfile" --tag "$IMAGE" "$checkout"
  run docker push "$IMAGE"
  ;;
train) "$@" ;;
log)
  run kubectl logs --follow --prefix --tail=-1 \
    --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
  ;;
delete)
  run kubectl delete jobset "$NAME"
  run kubectl delete configmap "$NAME"
  ;;
*) fail 'usage: bash launch/gke.sh build | train | log | delete (see its first lines)' ;;
esac
