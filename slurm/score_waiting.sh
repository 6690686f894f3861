#!/usr/bin/env bash
# Scoring beside a training, inside an allocation of its own: score_waiting.sh JOB. Ends with the
# training's job: SLURM is asked for it before each round, so what came last is scored too.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"
job=$1
# The time limit (--signal=B:USR1@300): a scoring that was cut continues where it was.
trap 'scontrol requeue "$SLURM_JOB_ID"; exit' USR1

while :; do
    # A controller that does not answer says nothing about the training.
    if queue=$(squeue --me --noheader --array --format=%i); then
        ended=1
        if grep --quiet --fixed-strings --line-regexp "$job" <<< "$queue"; then ended=''; fi
    else
        ended=''
    fi
    # In the background, so that this shell takes the signal.
    srun --quiet --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" \
        --export=ALL "$root/slurm/container.sh" score-waiting "$job" < /dev/null &
    wait "$!"
    if [[ $ended ]]; then break; fi
    sleep "${CONVOY_SCORE_EVERY:-60}" &
    wait "$!"
done
