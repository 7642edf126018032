#!/usr/bin/env bash
# What containerd does with the fuse-overlayfs snapshotter: containerd.sh
#
# The snapshotter is in no registry that the tests can rely on, so this makes its calls: each layer
# is unpacked through a mount, a container gets a mount of its own, and runc runs it.
#
#   snapshots/N/fs     what is in layer or container N
#   snapshots/N/work   its workdir
#
# containerd mounts by `mount.fuse3 overlay TARGET -o workdir=... -o upperdir=... -o lowerdir=...
# -t fuse-overlayfs`; the program behind is found by that name in PATH.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 3G mount.fuse3 fusermount3 runc python3 getfattr
ln -s "$BIN" "$WORK/bin/fuse-overlayfs"
PATH=$WORK/bin:$PATH
S=$WORK/snapshots
mkdir -p "$S" "$WORK/state"
touch -d 2000-01-01 "$WORK/since"
facts() { FACTS_SINCE=$WORK/since bash "$HERE/facts.sh" "$1" | sed -E 's/\t(new|[0-9.]+)$//'; }

# lowers N...: the option for these layers, the topmost first.
lowers() {
    local n option=
    for n in "$@"; do option+=:$S/$n/fs; done
    echo "lowerdir=${option#:}"
}
# mounted TARGET OPTION...: as containerd's mount package does.
mounted() {
    local target=$1 words=() option
    shift
    for option in "$@"; do words+=(-o "$option"); done
    mkdir -p "$target"
    check "mount $(basename "$target")" 30 mount.fuse3 overlay "$target" "${words[@]}" -t fuse-overlayfs || return 1
    MOUNTS+=("$target")
}
# unmounted TARGET: fusermount3 first, then umount2 until there is nothing.
unmounted() {
    check "unmount $(basename "$1")" 30 sh -euc '
        case $(stat -f -c %T "$1") in fuse*) fusermount3 -u "$1" ;; esac
        for tries in $(seq 50); do umount "$1" 2>/dev/null || break; sleep 0.05; done
        ! mountpoint -q "$1"' - "$1"
    forget_mount "$1"
}
# prepare N PARENT...: an active snapshot over its parents, the nearest first, at state/N.
prepare() {
    local n=$1
    shift
    mkdir -p "$S/$n"/{fs,work}
    if [ $# -eq 0 ]; then
        mkdir -p "$WORK/state/$n"
        mount --bind "$S/$n/fs" "$WORK/state/$n"
        MOUNTS+=("$WORK/state/$n")
    else
        mounted "$WORK/state/$n" "workdir=$S/$n/work" "upperdir=$S/$n/fs" "$(lowers "$@")"
    fi
}
# unpack TARBALL DIR: a layer's tarball is applied to a mounted tree, .wh. entries taken as deletions.
unpack() {
    local name
    tar -tf "$1" | grep -E '(^|/)\.wh\.' | while read -r name; do
        case $name in
        *.wh..wh..opq) find "$2/$(dirname "$name")" -mindepth 1 -delete ;;
        *) rm -rf "${2:?}/$(dirname "$name")/$(basename "$name" | sed 's/^\.wh\.//')" ;;
        esac
    done
    tar -C "$2" --exclude='.wh.*' --numeric-owner --xattrs --xattrs-include='*' -xpf "$1"
}

# Supported(): a read-only union of two directories.
mkdir -p "$WORK/check"/{lower1,lower2}
mounted "$WORK/check/merged" "lowerdir=$WORK/check/lower2:$WORK/check/lower1" || exit 1
unmounted "$WORK/check/merged"

# An image of three layers, and the same tree by ordinary commands.
mkdir -p "$WORK"/layer2/{usr/share/doc/bash,etc} "$WORK"/layer3/{usr/share/doc,srv} "$WORK/expected"
: >"$WORK/layer2/usr/share/doc/bash/.wh..wh..opq"
echo new >"$WORK/layer2/usr/share/doc/bash/new"
: >"$WORK/layer2/etc/.wh.motd"
echo layer2 >"$WORK/layer2/etc/issue"
: >"$WORK/layer3/usr/share/doc/.wh.tar"
echo layer3 >"$WORK/layer3/srv/one"
ln "$WORK/layer3/srv/one" "$WORK/layer3/srv/two"
cp /bin/true "$WORK/layer3/srv/caps"
setcap cap_net_raw+ep "$WORK/layer3/srv/caps"
for n in 2 3; do tar -C "$WORK/layer$n" --xattrs --xattrs-include='*' -cf "$WORK/layer$n.tar" .; done
chmod 755 "$WORK/expected"
layers() {
    prepare 1
    unpack "$1" "$WORK/state/1"
    unpack "$1" "$WORK/expected"
}
debian_base layers
unmounted "$WORK/state/1"
prepare 2 1
unpack "$WORK/layer2.tar" "$WORK/state/2"
unmounted "$WORK/state/2"
prepare 3 2 1
unpack "$WORK/layer3.tar" "$WORK/state/3"
unmounted "$WORK/state/3"
unpack "$WORK/layer2.tar" "$WORK/expected"
unpack "$WORK/layer3.tar" "$WORK/expected"
facts "$WORK/expected" >"$OUT/expected"

# View(): read-only.
mounted "$WORK/state/view" "$(lowers 3 2 1)"
facts "$WORK/state/view" >"$OUT/view"
same "the image" "$OUT/expected" "$OUT/view"
check "a view is read-only" 10 sh -euc '! touch "$1/new" "$1/srv/one"; test ! -e "$1/new"' - "$WORK/state/view"

# Two containers of the image at once.
for n in 4 5; do prepare $n 3 2 1; done
mkdir -p "$WORK/bundle"
cd "$WORK/bundle"
for n in 4 5; do
    rm -f config.json
    runc spec
    python3 - "$WORK/state/$n" "rm -r /usr/share/doc/bash; echo $n >/srv/one; mv /srv/two /srv/$n; mkdir /usr/share/doc/tar; echo x >/etc/motd" <<'END'
import json, sys
spec = json.load(open("config.json"))
spec["process"]["terminal"] = False
spec["process"]["args"] = ["/bin/sh", "-exc", sys.argv[2]]
spec["root"] = {"path": sys.argv[1], "readonly": False}
json.dump(spec, open("config.json", "w"))
END
    check "container $n" 60 runc --root "$WORK/run/runc" run "container$n"
    check "container $n has its changes" 10 sh -euc 'cd "$1"; test "$(cat srv/one)" = "$2"; test srv/one -ef "srv/$2"
        test ! -e usr/share/doc/bash; test -z "$(ls usr/share/doc/tar)"; test ! -e srv/two' - "$WORK/state/$n" "$n"
done
cd "$WORK"
facts "$WORK/state/view" >"$OUT/view.after"
same "the image afterwards" "$OUT/view" "$OUT/view.after"
facts "$WORK/state/4" >"$OUT/container"
unmounted "$WORK/state/4"
unmounted "$WORK/state/5"

# Commit(): the container's directory becomes a layer; a container of that shows the same.
prepare 6 4 3 2 1
facts "$WORK/state/6" >"$OUT/committed"
same "a container of the commit" "$OUT/container" "$OUT/committed"
unmounted "$WORK/state/6"
unmounted "$WORK/state/view"
if no_mounts "$WORK/state"; then pass "no mount and no daemon is left"; else fail "mounts or daemons are left"; fi
