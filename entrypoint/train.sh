#!/usr/bin/env bash
# In the container: from launch facts to torchrun, one call per node. Alone on one machine and under srun nothing needs to
# be set. slurm/launch.sh sets these; by hand:
#   CONVOY_NODES               number of nodes                           (those of the srun step, else 1)
#   CONVOY_PROCESSES_PER_NODE  ranks on each node                        (the job's GPUs, else the machine's, at least 1)
#   CONVOY_RDZV_ENDPOINT       host:port of the rendezvous, first node   (a free port of this machine)
#   CONVOY_RDZV_IS_HOST        1 on the node that hosts it, 0 elsewhere  (torchrun compares host names)
#   CONVOY_RUN_ID              the same on every node of one start       (none: rank 0 names the run by time)
#   CONVOY_LOCAL_ADDR          this node's address for its peers         (its host name)
# Arguments are Hydra overrides, passed on untouched.
set -euo pipefail

export PYTHONUNBUFFERED=1
exec python -m convoy.launch.node "$@"
