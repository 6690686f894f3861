#!/usr/bin/env bash
# In the container: from launch facts to torchrun, one call per node. Alone on one machine nothing needs to be set.
#   CONVOY_NODES               number of nodes                           (1)
#   CONVOY_PROCESSES_PER_NODE  ranks on each node                        (one per GPU, at least 1)
#   CONVOY_RDZV_ENDPOINT       host:port of the rendezvous, first node   (a free port of this machine)
#   CONVOY_RDZV_IS_HOST        1 on the node that hosts it, 0 elsewhere  (torchrun compares host names)
#   CONVOY_RUN_ID              the same on every node of one start       (none: rank 0 names the run by time)
#   CONVOY_LOCAL_ADDR          this node's address for its peers         (its host name)
# Arguments are Hydra overrides, passed on untouched.
set -euo pipefail

gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep --count '^GPU ' || true)
nodes=${CONVOY_NODES:-1}
processes=${CONVOY_PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1

# A mistake is told here in one line, before torchrun wraps it in a traceback of its own.
python -m convoy.cli check --quiet --nodes="$nodes" --processes-per-node="$processes" -- "$@"

exec torchrun \
    --nnodes="$nodes" \
    --nproc-per-node="$processes" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="${CONVOY_RDZV_ENDPOINT:-localhost:0}" \
    --rdzv-id="${CONVOY_RUN_ID:-none}" \
    ${CONVOY_RDZV_IS_HOST:+--rdzv-conf="is_host=$CONVOY_RDZV_IS_HOST"} \
    ${CONVOY_LOCAL_ADDR:+--local-addr="$CONVOY_LOCAL_ADDR"} \
    -m convoy.train "$@"
