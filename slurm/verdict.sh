# shellcheck shell=bash
# Sourced by what may decide what follows the end of a start, with `root` set: the batch script, and
# a node that outlived it.
# shellcheck disable=SC2034,SC2154  # variables that they share
container=$root/slurm/container.sh
job=$SLURM_JOB_ID  # in an array, the task's own: the number alone may stand for all of the tasks
if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# Waits for a process of this shell and sets status. A signal that this shell takes ends the wait, not
# the process, which may end while the signal is dealt with; whoever deals with it sets interrupted.
await() {
    while :; do
        interrupted='' status=0
        { wait "$1" || status=$?; } 2> /dev/null
        if [[ ! $interrupted ]]; then return; fi
    done
}

# Which of the hosts take a step of SLURM's; all are asked at once, and one that is gone is given up:
# srun itself would wait another minute for it.
answering() {
    local host
    for host; do
        timeout --kill-after=1 15 srun --quiet --overlap --nodes=1 --ntasks=1 --nodelist="$host" \
            --ntasks-per-node=1 printenv SLURMD_NODENAME 2> /dev/null &
    done
    wait
}

# conclude AGREEMENT STATUS SIGNAL HOST…: what ended the start, and what follows. SIGNAL is what asked
# this job to stop, or nothing. Sets action, status, excluded and batch.
conclude() {
    local given=(--status="$2" --job="$(scontrol show job "$job")") answer
    if [[ $3 ]]; then given+=(--asked="$3"); else given+=(--answering="$(answering "${@:4}")"); fi
    answer=$("$container" verdict "${given[@]}" "$1") || return
    read -r action status excluded batch < <(sed -n 's/^convoy-verdict //p' <<< "$answer")
}

# The one place that requeues the job: without the nodes of the list, or `-`. SLURM ends this script
# with the job; the nodes to avoid come after the requeueing.
requeue() {
    trap '' TERM
    scontrol requeue "$job" || true  # a node's failure may have been SLURM's reason before
    if [[ $1 != - ]]; then scontrol update JobId="$job" ExcNodeList="$1"; fi
}
