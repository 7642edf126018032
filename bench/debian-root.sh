#!/usr/bin/env bash
# Prints where the tar of a Debian root with a compiler, git and python is, after making it if need be.
set -euo pipefail
SUITES=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/suites" && pwd)
die() { echo "CANNOT RUN: $*" >&2; exit 1; }
say() { echo "$*" >&2; }
# shellcheck disable=SC2034 # for debian-base.sh
BASE_PACKAGES=gcc,git,libc6-dev,make,python3
. "$SUITES/debian-base.sh"

BASE=$(mktemp -d)
# shellcheck disable=SC2034 # for debian-base.sh
LOGS=$BASE
trap 'rm -rf "$BASE"' EXIT
debian_base echo
