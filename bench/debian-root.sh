#!/usr/bin/env bash
# Prints where the tar of a Debian root with a compiler, git and python is, after making it if need be.
set -euo pipefail
SUITES=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/suites" && pwd)
die() { echo "CANNOT RUN: $*" >&2; exit 1; }
. "$SUITES/apt-config.sh"
. "$SUITES/debian-base.sh"

PACKAGES=gcc,git,libc6-dev,make,python3
SUITE=${DEBIAN_SUITE:-$(apt_codename)}
[ -n "$SUITE" ] || die "no release name in /etc/os-release; set DEBIAN_SUITE"
TARBALL=$(base_tarball "$SUITE" "$PACKAGES")
if [ ! -s "$TARBALL" ]; then
    BASE=$(mktemp -d)
    trap 'rm -rf "$BASE"' EXIT
    apt_sources "$SUITE" >"$BASE/sources.list"
    apt_options >"$BASE/apt.conf"
    build_base "$SUITE" "$PACKAGES" "$BASE/sources.list" "$BASE/apt.conf" "$BASE/log"
fi
echo "$TARBALL"
