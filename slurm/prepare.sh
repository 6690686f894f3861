#!/usr/bin/env bash
# Preparing data, inside an allocation: one container per node, in each a process per CPU. Arguments are those of
# `convoy prepare`. Nodes share the work by number and need no word from each other; docs/data.md tells the rest.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"

export CONVOY_TASKS=$SLURM_JOB_NUM_NODES CONVOY_RESTART=${SLURM_RESTART_COUNT:-0}
export CONVOY_RUN_ID=$SLURM_JOB_ID-$CONVOY_RESTART CONVOY_HEAD='' CONVOY_PROCESSES_PER_NODE=1
# One task that stops leaves the others at work: they finish their shares, and the same command does the rest.
exec srun --quiet --nodes="$CONVOY_TASKS" --ntasks="$CONVOY_TASKS" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL --kill-on-bad-exit=0 \
    "$root/slurm/container.sh" prepare "$@"
