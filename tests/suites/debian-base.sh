# A Debian root as a tar, made by mmdebstrap with the apt configuration of this machine and cached in
# $UNIONFS_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/unionfs-tests). Needs apt-config.sh and `die`.
# shellcheck shell=bash

CACHE=${UNIONFS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/unionfs-tests}

# base_tarball SUITE PACKAGES: where the tar of such a root is, or will be.
base_tarball() {
    echo "$CACHE/debian-$1-$(dpkg --print-architecture)-${2//,/-}.tar"
}

# build_base SUITE PACKAGES SOURCES APT_CONF LOG: makes the tar unless it is there. Locks the cache
# until `exec 9>&-`.
build_base() {
    local tarball
    tarball=$(base_tarball "$1" "$2")
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    flock -w 1000 9 || die "another run holds $CACHE/lock"
    [ ! -s "$tarball" ] || return 0
    echo "  building $(basename "$tarball") with mmdebstrap" >&2
    timeout -k 10 900 mmdebstrap --mode=root --variant=minbase --include="$2" \
        --aptopt="$4" "$1" "$tarball.part.tar" "$3" \
        >"$5" 2>&1 || { tail -n 25 "$5" >&2; die "mmdebstrap failed"; }
    mv "$tarball.part.tar" "$tarball"
}
