#!/usr/bin/env bash
# The steps of both recipes, as root in the image: "dependencies" first, then "convoy", each told the variant.
# What only the build may know lies below /run/secrets and ends up in no layer: "ca", a bundle of certificates,
# and "mirrors", lines of NAME=VALUE (APT_MIRROR, pip's and the proxies' own variables).
set -euo pipefail
umask 022
export PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8

if [ -f /run/secrets/mirrors ]; then
    set -a
    # shellcheck source=/dev/null
    . /run/secrets/mirrors
    set +a
fi
if [ -s /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
fi

# What torch's wheels do not bring: Python with its headers and a compiler (torch.compile builds its launchers with
# them), and the verbs libraries, without which NCCL goes over TCP although the nodes have InfiniBand or RoCE.
packages=(ca-certificates gcc ibverbs-providers libc6-dev libibverbs1 librdmacm1 python3 python3-dev python3-venv)

if [ "$1" = dependencies ]; then
    sources=$(mktemp --directory)
    options=(-o APT::Sandbox::User=root -o Acquire::Retries=3)
    if [ -n "${SSL_CERT_FILE:-}" ]; then options+=(-o Acquire::https::CAInfo="$SSL_CERT_FILE"); fi
    if [ -n "${APT_MIRROR:-}" ]; then
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $APT_MIRROR bookworm main" > "$sources/mirror.list"
        options+=(-o Dir::Etc::sourcelist="$sources/mirror.list" -o Dir::Etc::sourceparts=/dev/null)
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get "${options[@]}" -qq update
    apt-get "${options[@]}" -qq install --yes --no-install-recommends "${packages[@]}" > /dev/null
    rm -rf "$sources"
fi

exec python3 /opt/convoy/image/install.py "$@"
