# A Debian root as a tarball, made by mmdebstrap with the apt configuration of this machine, cached
# in $UNIONFS_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/unionfs-tests). DEBIAN_SUITE names the
# release; the default is the one that the machine's apt is configured for.
# shellcheck shell=bash

. "$SUITES/apt-config.sh"

SUITE=${DEBIAN_SUITE:-$(apt_codename)}
# Beside the minimal root: a package of many files and directories, to be removed again, and what
# sets attributes; or what whoever reads this file has set.
BASE_PACKAGES=${BASE_PACKAGES:-attr,libcap2-bin,tzdata}

# debian_base COMMAND...: runs COMMAND with the tarball's path as its last word, while no other run
# changes it. Leaves $BASE/sources.list and $BASE/apt.conf.
debian_base() {
    local cache=${UNIONFS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/unionfs-tests} tarball lock status=0
    [ -n "$SUITE" ] || die "no release name in /etc/os-release; set DEBIAN_SUITE"
    apt_sources "$SUITE" >"$BASE/sources.list"
    [ -s "$BASE/sources.list" ] || die "the machine's apt has no source for '$SUITE'; set DEBIAN_SUITE"
    apt_options >"$BASE/apt.conf"
    mkdir -p "$cache"
    exec {lock}>"$cache/lock"
    flock -w 1000 "$lock" || die "another run holds $cache/lock"
    tarball=$cache/debian-$SUITE-$(dpkg --print-architecture)-${BASE_PACKAGES//,/-}.tar
    if [ ! -s "$tarball" ]; then
        say "  building $(basename "$tarball") with mmdebstrap"
        timeout -k 10 900 mmdebstrap --mode=root --variant=minbase --include="$BASE_PACKAGES" \
            --aptopt="$BASE/apt.conf" "$SUITE" "$tarball.part.tar" "$BASE/sources.list" \
            >"$LOGS/mmdebstrap.log" 2>&1 || { tail -n 25 "$LOGS/mmdebstrap.log"; die "mmdebstrap failed"; }
        mv "$tarball.part.tar" "$tarball"
    fi
    "$@" "$tarball" || status=$?
    exec {lock}>&-
    return $status
}
