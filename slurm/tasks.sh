#!/usr/bin/env bash
# A word of `convoy` whose tasks share the work, inside an allocation: tasks.sh WORD ARGUMENT…, one
# container per node, in each a process per CPU. Nodes share by number and need not talk to each other.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"

# One task that stops leaves the others at work: they finish their shares, and the same command does
# the rest.
exec srun --quiet --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    --ntasks-per-node=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL \
    --kill-on-bad-exit=0 "$root/slurm/container.sh" "$@"
