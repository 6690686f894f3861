#!/usr/bin/env bash
# The launch, inside an allocation (a job file's, or salloc's): one container per node, torchrun in
# each, a rank per GPU. Arguments are Hydra overrides, passed on untouched. Settings: docs/launch.md.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"
# shellcheck source=slurm/verdict.sh
. "$root/slurm/verdict.sh"
if [[ ${1:-} == --sweep=* ]]; then  # a task of a job array: its point's overrides, one on a line
    mapfile -t point < "${1#--sweep=}/points/$SLURM_ARRAY_TASK_ID"
    set -- "${point[@]}"
fi
read -ra defaults <<< "${CONVOY_OVERRIDES:-}"
overrides=("${defaults[@]}" "$@")

# One task with all of the job's CPUs on each node, however many tasks sbatch was asked for.
unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
one_per_node=(--ntasks-per-node=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL)
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# The job runs what was submitted: what of the launch or the image is newer than the job is reported.
submitted=$(scontrol show job "$job" | sed -n 's/.*SubmitTime=\([^ ]*\).*/\1/p')
changed=$(find "$root/slurm" "$CONVOY_IMAGE" -maxdepth 1 -type f -newermt "${submitted:-now}")

# The time limit (--signal=B:USR1@300), preemption, scancel, Ctrl-C: the ranks save and end with 75.
agreement='' asked=''
ask_to_stop() {
    asked=$1 interrupted=1
    if [[ $agreement ]]; then "$container" ask-to-stop --signal="$1" "$agreement" || true; fi
}
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM
trap 'ask_to_stop INT' INT

for ((attempt = 0; ; attempt++)); do
    export CONVOY_ATTEMPT=$attempt
    # A step that lost a node stays on the others until SLURM has given that node up.
    if ((attempt)); then one_per_node+=(--overlap); fi
    # On the first node: is the configuration sound, where does the run live, where do nodes meet?
    # The answers are the lines with a mark; a site may print greetings on the same output.
    answer=$(srun --quiet --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" "${one_per_node[@]}" \
        "$container" rendezvous --changed="$changed" -- "${overrides[@]}") || exit
    agreement=$(sed -n 's/^convoy-agreement //p' <<< "$answer")
    lost=$(sed -n 's/^convoy-lost-nodes //p' <<< "$answer")
    if [[ $asked ]]; then ask_to_stop "$asked"; fi

    # In the background and in a session of its own, so that this shell takes the signals. A node's
    # failure leaves the others 30 s to report theirs.
    setsid srun --quiet --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" \
        --nodelist="$(IFS=,; echo "${hosts[*]}")" "${one_per_node[@]}" --wait=30 \
        --kill-on-bad-exit=0 "$root/slurm/node.sh" "$agreement" "$lost" "${overrides[@]}" \
        < /dev/null &
    step=$!
    # A node that is gone never ends its task. The others end theirs when they notice, and say so.
    { until [[ -e $lost ]]; do sleep 1; done; sleep 5; kill -KILL "$step"; } &> /dev/null &
    watch=$!
    await "$step"
    kill "$watch" 2> /dev/null || true
    if ((status == 0)); then exit; fi

    conclude "$agreement" "$status" "$asked" "${hosts[@]}" || exit "$status"
    case $action in
        again) ;;
        shrink)
            mapfile -t hosts < <(printf '%s\n' "${hosts[@]}" | grep --invert-match --line-regexp \
                --fixed-strings "${excluded//,/$'\n'}")
            CONVOY_HOSTS=$(IFS=,; echo "${hosts[*]}")
            export CONVOY_HOSTS
            if [[ $batch != - ]]; then overrides+=("global_batch=$batch"); fi
            ;;
        *) break ;;
    esac
done
if [[ $action == requeue ]]; then requeue "$excluded"; fi
exit "$status"
