#!/usr/bin/env bash
# A node's part of a start: slurm/node.sh AGREEMENT LOST OVERRIDE…. LOST is the file in which nodes
# name one that went. If that is the first one and SLURM cannot reach it either, the batch script
# went with it, and the first of the others does what is left to do.
set -uo pipefail
root=$CONVOY_ROOT
# shellcheck source=slurm/verdict.sh
. "$root/slurm/verdict.sh"
agreement=$1 lost=$2
shift 2
trap : USR1 TERM INT  # they are for the launcher in the container
"$container" train --agreement="$agreement" -- "$@"
status=$?
IFS=, read -ra hosts <<< "${CONVOY_HOSTS:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)}"
if [[ ${hosts[1]:-} == "$SLURMD_NODENAME" ]] && grep -qsx "${hosts[0]}" "$lost" &&
    [[ ! $(answering "${hosts[0]}") ]]; then
    shown=$(scontrol show job "$job")
    log=$(sed -n 's/^ *StdOut=//p' <<< "$shown")
    # Another start runs already where SLURM was faster.
    if [[ $shown == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]; then
        conclude "$agreement" "$status" '' "${hosts[@]}" &>> "${log:-/dev/null}"
        if [[ ${action:-} == requeue ]]; then requeue "$excluded"; fi
    fi
fi
exit "$status"
