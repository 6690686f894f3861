#!/usr/bin/env bash
# The container on this node: slurm/container.sh WORD ARGUMENT… runs a word of entrypoint/run.sh in
# the image. Of the host it sees what is named here and nothing else: no home directory, no other
# variable, no Python.
set -euo pipefail

for name in $(compgen -e); do
    case $name in
        SLURM_* | SLURMD_NODENAME | CONVOY_* | NCCL_* | GLOO_* | TORCH_* | TORCHELASTIC_* | \
            PYTORCH_* | HF_* | OPENSCENE_* | NUPLAN_* | NAVSIM_EXP_ROOT | CUDA_VISIBLE_DEVICES | \
            OMP_NUM_THREADS | http*_proxy | no_proxy)
            export "APPTAINERENV_$name=${!name}" ;;
    esac
done

# Not --contain: its /dev/shm is small, and data loaders and NCCL share memory there. --pid: when the
# container ends, no process of it is left on the node.
options=(--cleanenv --no-home --pid --bind="$NAVSIM_EXP_ROOT" --bind="$PWD" --pwd="$PWD")
if [[ ${CONVOY_BIND:-} ]]; then options+=(--bind="$CONVOY_BIND"); fi
if [[ ${NAVSIM_DEVKIT_ROOT:-} ]]; then options+=(--bind="$NAVSIM_DEVKIT_ROOT:/opt/navsim"); fi
if [[ -e /dev/nvidiactl ]]; then options+=(--nv); fi
exec apptainer --quiet exec "${options[@]}" "$CONVOY_IMAGE" /opt/convoy/entrypoint/run.sh "$@"
