#!/usr/bin/env bash
# The launch, inside an allocation (a job file's, or salloc's): one container per node, torchrun in
# each, a rank per GPU. Arguments are Hydra overrides, passed on untouched. Settings: docs/launch.md.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"
read -ra defaults <<< "${CONVOY_OVERRIDES:-}"
overrides=("${defaults[@]}" "$@")

# One task with all of the job's CPUs on each node, however many tasks sbatch was asked for.
unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
one_per_node=(--ntasks-per-node=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL)

# The job runs what was submitted: what of the launch or the image is newer than the job is reported.
submitted=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*SubmitTime=\([^ ]*\).*/\1/p')
changed=$(find "$root/slurm" "$CONVOY_IMAGE" -maxdepth 1 -type f -newermt "${submitted:-now}")

# Once, on the first node: is the configuration sound, where does the run live, where do nodes meet?
# The answer is the line with the mark; a site may print greetings on the same output.
answer=$(srun --quiet --nodes=1 --ntasks=1 --relative=0 "${one_per_node[@]}" \
    "$root/slurm/container.sh" rendezvous --changed="$changed" -- "${overrides[@]}") || exit
agreement=$(sed -n 's/^convoy-agreement //p' <<< "$answer")

# In the background, so that this shell can take signals. A node's failure leaves the others 30 s to
# report theirs.
srun --quiet --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" "${one_per_node[@]}" \
    --wait=30 --kill-on-bad-exit=0 \
    "$root/slurm/container.sh" train --agreement="$agreement" -- "${overrides[@]}" &
step=$!
trap 'echo "launch: the time limit is near; the same command goes on from the last checkpoint"' USR1
trap 'kill -TERM "$step"' INT TERM
while :; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2> /dev/null || break
done
if ((status)); then "$root/slurm/container.sh" verdict "$agreement" >&2; fi
exit "$status"
