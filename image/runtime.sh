# shellcheck shell=sh
# The environment in the image, read by every shell that Apptainer starts there and by the
# entrypoint. Nothing of the host's Python comes in, and what programs cache goes to the temporary
# directory, since neither the image nor a home directory can be counted on to be writable.

# Empty is as good as unset for Python; from here, Apptainer passes on what is set but not what is
# unset.
export PYTHONPATH='' PYTHONHOME='' PYTHONSTARTUP=''
export PATH=/opt/convoy/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1

# The host's TMPDIR may not exist in here.
if [ -w "${TMPDIR:-/tmp}" ]; then export TMPDIR="${TMPDIR:-/tmp}"; else export TMPDIR=/tmp; fi
XDG_CACHE_HOME="$TMPDIR/convoy-$(id -u)"
export XDG_CACHE_HOME
export MPLCONFIGDIR="$XDG_CACHE_HOME/matplotlib"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$XDG_CACHE_HOME/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$XDG_CACHE_HOME/inductor}"
export CUDA_CACHE_PATH="${CUDA_CACHE_PATH:-$XDG_CACHE_HOME/cuda}"

# Pretrained weights come from what was baked in or bound, not from a hub: compute nodes are
# offline.
export HF_HOME=/opt/convoy/weights HF_HUB_OFFLINE=1
