# shellcheck shell=bash
# Sourced by what runs in an allocation, with `root` set: the site's settings, the image, a folder for results.
fail() { echo "convoy: $*" >&2; exit 1; }

[[ ${SLURM_JOB_NODELIST:-} ]] || fail "this is not a SLURM allocation: sbatch slurm/torchrun_2node.slurm …, or salloc first"

# Site settings: NAME=VALUE lines, taken where the environment has no such name.
site=${CONVOY_SITE:-$root/slurm/site.conf}
if [[ -f $site ]]; then
    while IFS= read -r line || [[ $line ]]; do
        line=${line%$'\r'} # of a file that was written on Windows
        if [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ && ! -v ${BASH_REMATCH[1]} ]]; then export "${BASH_REMATCH[0]}"; fi
    done < "$site"
elif [[ ${CONVOY_SITE:-} ]]; then
    fail "CONVOY_SITE=$site does not exist: name a file of NAME=VALUE lines, or unset it"
fi
read -ra modules <<< "${CONVOY_MODULES:-}"
if ((${#modules[@]})); then module load "${modules[@]}"; fi

export CONVOY_ROOT=$root CONVOY_IMAGE=${CONVOY_IMAGE:-$root/build/convoy.sif}
export NAVSIM_EXP_ROOT=${NAVSIM_EXP_ROOT:-$PWD/exp}
type -P apptainer > /dev/null || fail "apptainer is not in PATH of $(hostname): name its module, CONVOY_MODULES in $site"
[[ -r $CONVOY_IMAGE ]] || fail "there is no image $CONVOY_IMAGE: make image, or CONVOY_IMAGE=/path/to/convoy.sif"
if ! mkdir -p "$NAVSIM_EXP_ROOT" 2> /dev/null || [[ ! -w $NAVSIM_EXP_ROOT ]]; then
    fail "NAVSIM_EXP_ROOT=$NAVSIM_EXP_ROOT cannot be written: name a shared folder that you can write to"
fi
