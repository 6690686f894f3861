#!/usr/bin/env bash
# What `apptainer run` and `docker run` start: `train` becomes torchrun, a program is itself (bash, python, …), and every
# other word is a convoy command.
set -euo pipefail
# shellcheck source=image/runtime.sh
. /opt/convoy/image/runtime.sh

case ${1:-help} in
    train) exec /opt/convoy/entrypoint/train.sh "${@:2}" ;;
    help) exec convoy --help ;;
esac
if type -P -- "$1" > /dev/null; then exec "$@"; fi
exec convoy "$@"
