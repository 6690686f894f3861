#!/usr/bin/env bash
# The launch, inside an allocation (a job file's, or salloc's): one container per node, torchrun in
# each, a rank per GPU. Arguments are Hydra overrides, passed on untouched. Settings: docs/launch.md.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"
if [[ ${1:-} == --sweep=* ]]; then  # a task of a job array: its point's overrides, one on a line
    mapfile -t point < "${1#--sweep=}/points/$SLURM_ARRAY_TASK_ID"
    set -- "${point[@]}"
fi
read -ra defaults <<< "${CONVOY_OVERRIDES:-}"
overrides=("${defaults[@]}" "$@")
container=$root/slurm/container.sh
job=$SLURM_JOB_ID  # in an array, the task's own: the number alone may stand for all of the tasks
if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# One task with all of the job's CPUs on each node, however many tasks sbatch was asked for.
unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
one_per_node=(--ntasks-per-node=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL)

# The job runs what was submitted: what of the launch or the image is newer than the job is reported.
submitted=$(scontrol show job "$job" | sed -n 's/.*SubmitTime=\([^ ]*\).*/\1/p')
changed=$(find "$root/slurm" "$CONVOY_IMAGE" -maxdepth 1 -type f -newermt "${submitted:-now}")

# The time limit (--signal=B:USR1@300), preemption, scancel, Ctrl-C: the ranks save and end with 75.
agreement='' asked=()
ask_to_stop() {
    asked=(--asked="$1")
    if [[ $agreement ]]; then "$container" ask-to-stop --signal="$1" "$agreement" || true; fi
}
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM
trap 'ask_to_stop INT' INT

for ((attempt = 0; ; attempt++)); do
    export CONVOY_ATTEMPT=$attempt
    # On the first node: is the configuration sound, where does the run live, where do nodes meet?
    # The answer is the line with the mark; a site may print greetings on the same output.
    answer=$(srun --quiet --nodes=1 --ntasks=1 --relative=0 "${one_per_node[@]}" \
        "$container" rendezvous --changed="$changed" -- "${overrides[@]}") || exit
    agreement=$(sed -n 's/^convoy-agreement //p' <<< "$answer")
    if ((${#asked[@]})); then ask_to_stop "${asked[0]#*=}"; fi

    # In the background and in a session of its own, so that this shell takes the signals. A node's
    # failure leaves the others 30 s to report theirs.
    setsid srun --quiet --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
        "${one_per_node[@]}" --wait=30 --kill-on-bad-exit=0 \
        "$container" train --agreement="$agreement" -- "${overrides[@]}" < /dev/null &
    step=$!
    while :; do
        status=0
        wait "$step" || status=$?
        kill -0 "$step" 2> /dev/null || break
    done
    if ((status == 0)); then exit; fi

    # What ended it, and what follows: the one place that decides whether the job is requeued.
    answering=()
    if ((! ${#asked[@]})); then
        answering=(--answering="$(timeout 60 srun --quiet --overlap --kill-on-bad-exit=0 \
            --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
            printenv SLURMD_NODENAME 2> /dev/null)") || true
    fi
    answer=$("$container" verdict --status="$status" --job="$(scontrol show job "$job")" \
        "${answering[@]}" "${asked[@]}" "$agreement") || exit "$status"
    read -r action status excluded < <(sed -n 's/^convoy-verdict //p' <<< "$answer")
    if [[ $action != again ]]; then break; fi
done
if [[ $action == requeue ]]; then
    trap '' TERM  # SLURM ends this script with the job; the nodes to avoid come after the requeueing
    scontrol requeue "$job" || true  # a node's failure may have been SLURM's reason before
    if [[ $excluded ]]; then scontrol update JobId="$job" ExcNodeList="$excluded"; fi
fi
exit "$status"
