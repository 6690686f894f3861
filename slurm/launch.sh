#!/usr/bin/env bash
# The launch, inside an allocation (a job file's, or salloc's): one container per node, torchrun in each, a rank per GPU.
# Arguments are Hydra overrides, passed on untouched. docs/launch.md tells the settings.
set -euo pipefail
root=${CONVOY_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=slurm/site.sh
. "$root/slurm/site.sh"
read -ra defaults <<< "${CONVOY_OVERRIDES:-}"
overrides=("${defaults[@]}" "$@")

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export CONVOY_HOSTS=${hosts//$'\n'/ }
export CONVOY_HEAD=${CONVOY_HOSTS%% *} CONVOY_NODES=$SLURM_JOB_NUM_NODES
export CONVOY_RUN_ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
# One task with all of the job's CPUs on each node, however many tasks sbatch was told of.
unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
one_per_node=(--ntasks-per-node=1 --cpus-per-task="${SLURM_JOB_CPUS_PER_NODE%%[(,]*}" --export=ALL)

# Once, on the first node: is the configuration sound, where does the run live, which port is free?
facts=$(srun --quiet --nodes=1 --ntasks=1 --nodelist="$CONVOY_HEAD" "${one_per_node[@]}" \
    "$root/slurm/container.sh" rendezvous -- "${overrides[@]}") || exit
while IFS='=' read -r name value; do export "$name=$value"; done <<< "$facts"

# In the background, so that this shell can take signals. A node's failure leaves the others 30 s to tell their side.
srun --quiet --nodes="$CONVOY_NODES" --ntasks="$CONVOY_NODES" "${one_per_node[@]}" --wait=30 --kill-on-bad-exit=0 \
    "$root/slurm/container.sh" train "${overrides[@]}" &
step=$!
# shellcheck disable=SC2153  # set by the facts above
trap 'echo "launch: the time limit is near; the same command goes on from the checkpoints in $CONVOY_RUN_DIR"' USR1
trap 'kill -TERM "$step"' INT TERM
while :; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2> /dev/null || break
done
if ((status)); then "$root/slurm/container.sh" failure "$CONVOY_RUN_DIR" "$CONVOY_RUN_ID" >&2; fi
exit "$status"
