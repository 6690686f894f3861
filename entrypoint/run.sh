#!/usr/bin/env bash
# What `apptainer run` and `docker run` start: a program is itself (bash, python, …), every other
# word is one of `convoy`.
set -euo pipefail
# shellcheck source=image/runtime.sh
. /opt/convoy/image/runtime.sh

if (($# == 0)) || [[ $1 == help ]]; then exec convoy --help; fi
if type -P -- "$1" > /dev/null; then exec "$@"; fi
exec convoy "$@"
