#!/usr/bin/env bash
# Installs what only all.sh needs beside tests/setup.sh: Docker's engine and LXC. No service is started,
# and no bridge made.
set -uo pipefail
exec </dev/null
if command -v dockerd && command -v containerd && command -v lxc-start && [ -x /usr/bin/docker ]; then exit 0; fi
# Where packages may start their services, these must not.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f "$policy"' EXIT
fi
DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends docker.io containerd lxc
