#!/usr/bin/env bash
# Installs what the tests need, on a machine with Rust and apt. Needs root. What is there already is
# left alone, so a second run is quick.
set -uo pipefail
exec </dev/null
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
export DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never
if [ "$(id -u)" -ne 0 ]; then
    echo "needs root: the tests mount, change owners and chroot"
    exit 1
fi

PACKAGES=(acl attr bindfs btrfs-progs bubblewrap buildah build-essential ca-certificates crun
    debian-archive-keyring e2fsprogs erofs-utils fio fish fuse-overlayfs fuse3 git groff libacl1-dev libcap2-bin
    man-db mandoc mmdebstrap mount pkg-config podman procps python3 rsync runc shellcheck squashfs-tools
    strace stress-ng uidmap util-linux xfsprogs zsh)
packages() {
    # A third-party source that cannot be reached is no reason to stop; a missing package is.
    apt-get -q update || echo "apt-get update failed in part; going on with what there is"
    apt-get -q install -y --no-install-recommends "${PACKAGES[@]}" >/tmp/apt-install.$$ 2>&1
    local status=$?
    [ $status -eq 0 ] || cat /tmp/apt-install.$$
    rm -f /tmp/apt-install.$$
    [ -c /dev/fuse ] || modprobe fuse
    [ -c /dev/fuse ] || { echo "no /dev/fuse: this kernel has no FUSE"; return 1; }
    return $status
}

# tool NAME VERSION: a program from crates.io, unless that version is there already.
tool() {
    "$1" --version 2>/dev/null | grep -qwF -- "$2" || cargo install --locked "$1" --version "=$2"
}
# Programs whose files are read and written in tests. Debian's unionfs-fuse has names that our own package has, so it
# is unpacked where nothing finds it.
peers() {
    local dir=/usr/local/lib/unionfs-fuse
    [ ! -x $dir/usr/bin/unionfs ] || return 0
    (cd /tmp && apt-get -q download unionfs-fuse && dpkg-deb -x unionfs-fuse_*.deb $dir && rm unionfs-fuse_*.deb)
}
rust_components() {
    cargo fmt --version && cargo clippy --version && return 0
    rustup component add rustfmt clippy
}
tools() {
    rust_components && tool cargo-deny 0.20.2 && tool cargo-deb 3.8.0 && tool cargo-fuzz 0.13.1 &&
        tool pjdfstest 0.2.2 && tool fsx 0.3.2
}

packages && peers && tools
