#!/usr/bin/env bash
# The container on this node: slurm/container.sh WORD ARGUMENT… runs a word of entrypoint/run.sh in
# the image. Of the host it sees what is named here and nothing else: no home directory, no other
# variable, no Python.
set -euo pipefail

for name in $(compgen -e); do
    case $name in
        SLURM_* | SLURMD_NODENAME | CONVOY_* | NCCL_* | GLOO_* | TORCH_* | TORCHELASTIC_* | \
            PYTORCH_* | HF_* | OPENSCENE_* | NUPLAN_* | NAVSIM_EXP_ROOT | CUDA_VISIBLE_DEVICES | \
            OMP_NUM_THREADS | http*_proxy | no_proxy | all_proxy | HTTP*_PROXY | NO_PROXY | ALL_PROXY)
            export "APPTAINERENV_$name=${!name}" ;;
    esac
done

# A path as it is: --bind splits at commas and colons, --mount reads fields of CSV.
mount() {
    local source=$1 field
    if [[ $source != /* ]]; then source=$PWD/$source; fi
    printf type=bind
    for field in "source=$source" "destination=${2:-$source}"; do
        printf ',"%s"' "${field//\"/\"\"}"
    done
}

# Not --contain: its /dev/shm is small, and data loaders and NCCL share memory there. --pid: when the
# container ends, no process of it is left on the node. --no-eval: a shell in the container would
# evaluate the values of variables.
options=(--cleanenv --no-eval --no-home --pid --mount="$(mount "$NAVSIM_EXP_ROOT")" \
    --mount="$(mount "$PWD")" --pwd="$PWD")
if [[ ${CONVOY_BIND:-} == /* && -e $CONVOY_BIND ]]; then
    options+=(--mount="$(mount "$CONVOY_BIND")")
elif [[ ${CONVOY_BIND:-} ]]; then
    options+=(--bind="$CONVOY_BIND")
fi
if [[ ${NAVSIM_DEVKIT_ROOT:-} ]]; then
    options+=(--mount="$(mount "$NAVSIM_DEVKIT_ROOT" /opt/navsim)")
fi
if [[ ${CONVOY_COMPAT:-} ]]; then
    options+=(--mount="$(mount "$CONVOY_COMPAT" /opt/convoy/compat)")
fi
if [[ -e /dev/nvidiactl ]]; then options+=(--nv); fi

# From the node's own disk where the site names a folder there; else, or where that fails, mounted.
image=$CONVOY_IMAGE
if [[ ${CONVOY_UNPACK:-} && $1 == train && -f $image ]]; then
    image=$("${BASH_SOURCE[0]%/*}/unpack.sh") || image=$CONVOY_IMAGE
fi
exec apptainer --quiet exec "${options[@]}" "$image" /opt/convoy/entrypoint/run.sh "$@"
