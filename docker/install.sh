#!/bin/sh
# The steps of an image's build, for a Debian 12 root. The Dockerfiles call them; nothing but this file knows them.
#
#   install.sh environment EXTRA   python, and Headrace with EXTRA ("native" or "gpu") in /opt/headrace
#   install.sh runtime [PACKAGE..] what that environment needs to run, the user headrace (1000), and /data
#
# Where packages come from is apt's and pip's own configuration (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...).
set -eu

packages() {
    apt-get update
    apt-get install -y --no-install-recommends "$@"
    rm -rf /var/lib/apt/lists/*
}

environment() {
    packages ca-certificates python3 python3-venv
    python3 -m venv /opt/headrace
    /opt/headrace/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[$1]"
}

runtime() {
    packages ca-certificates python3 python3-venv "$@"
    useradd --uid 1000 --create-home --home-dir /home/headrace headrace
    mkdir -p /data
    # For any --user: compiled kernels and downloads go there.
    chown headrace:headrace /data
    chmod 1777 /data /home/headrace
}

step=$1
shift
"$step" "$@"
