#!/usr/bin/env bash
# What `apptainer run` and `docker run` start: a program is itself (bash, python, …), every other
# word is one of `convoy`.
set -euo pipefail
# shellcheck source=image/runtime.sh
. /opt/convoy/image/runtime.sh

# A driver that is too old for the image's CUDA, and libraries that bridge that: docs/image.md.
if [[ -e /opt/convoy/compat/libcuda.so.1 && -e /proc/driver/nvidia/version ]]; then
    libraries=$(python -m convoy.health.compat) || libraries=''
    if [[ $libraries ]]; then export LD_LIBRARY_PATH=$libraries; fi
fi

if (($# == 0)) || [[ $1 == help ]]; then exec convoy --help; fi
if type -P -- "$1" > /dev/null; then exec "$@"; fi
exec convoy "$@"
