#!/usr/bin/env bash
# Layers on every kind of file system, unions on unions, layers that give no attributes or keep root
# out: nested-layers.sh
#
# The same two layers and the same work each time; what is seen before and after, and after a new
# mount, has to be what ordinary commands make of a plain copy.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 4G mkfs.ext4 mkfs.xfs mkfs.btrfs mksquashfs mkfs.erofs bindfs getfattr
ordinary_user
touch -d 2016-01-01 "$WORK/since"

# Layers: `lower` below, `middle` above it with whiteouts of every form.
L=$WORK/layers
mkdir -p "$L"/lower/{dir/sub,gone,opaque,tree/{a,b}} "$L"/middle/{dir,opaque}
for n in 1 2 3 4; do for dir in dir gone opaque tree/a; do echo "$dir $n" >"$L/lower/$dir/f$n"; done; done
head -c 300000 /dev/urandom >"$L/lower/dir/large"
truncate -s 3M "$L/lower/dir/sparse"
echo end >>"$L/lower/dir/sparse"
ln "$L/lower/dir/f1" "$L/lower/dir/linked"
ln -s f1 "$L/lower/dir/soft"
mkfifo "$L/lower/dir/fifo"
chmod 4755 "$L/lower/dir/f2"
chown 7:8 "$L/lower/dir/f3"
setfattr -n user.comment -v text "$L/lower/dir/f4"
setcap cap_net_raw+ep "$L/lower/dir/f4"
echo blank >"$L/lower/a name"
echo bytes >"$L/lower/$(printf 'caf\351')"
cp -a "$L/lower" "$WORK/plain"
: >"$L/middle/.wh.gone"
: >"$L/middle/opaque/.wh..wh..opq"
echo new >"$L/middle/opaque/new"
mknod "$L/middle/dir/f3" c 0 0
echo middle >"$L/middle/dir/f1"
rm -r "$WORK/plain"/{gone,opaque/*,dir/f3,dir/f1}
echo new >"$WORK/plain/opaque/new"
echo middle >"$WORK/plain/dir/f1"
find "$L" "$WORK/plain" -exec touch -h -d '2015-01-01 00:00:00' {} +

# facts DIR [bare]: bare leaves out extended attributes, where layers cannot have them.
facts() { FACTS_SINCE=$WORK/since FACTS_NO_ATTRIBUTES=${2:-} bash "$HERE/facts.sh" "$1"; }
change() { (cd "$1" && sh -euc '
    echo more >>dir/f1; rm dir/f2; mkdir gone; echo back >gone/f1; mv tree/a tree/moved; mv dir/linked dir/renamed
    printf x | dd of=dir/large bs=1 seek=1000 conv=notrunc 2>/dev/null; truncate -s 4M dir/sparse; rm -r opaque; mkdir opaque
    chmod 600 dir/f4; chown 5:6 dir/soft -h; ln "a name" tree/link; touch -d 2001-01-01 dir/sub; rm dir/fifo; mkfifo dir/fifo'); }
facts "$WORK/plain" >"$OUT/before"
facts "$WORK/plain" bare >"$OUT/before.bare"
cp -a "$WORK/plain" "$WORK/changed"
change "$WORK/changed"
facts "$WORK/changed" >"$OUT/changed"
facts "$WORK/changed" bare >"$OUT/changed.bare"

# on NAME LOWER MIDDLE UPPER [bare [OPTIONS]]: the union of these, worked in. UPPER may be `none`.
on() {
    local name=$1 lower=$2 middle=$3 upper=$4 kind=${5:-} at=$WORK/mnt layers
    UNIONFS_OPTIONS=${6:-}
    layers=$({ facts "$lower" "$kind"; facts "$middle" "$kind"; } | sha256sum)
    mkdir -p "$at"
    if [ "$upper" = none ]; then
        mount_readonly "$at" "$middle:$lower"
    else
        mkdir -p "$upper"/{upper,work}
        mount_target "$at" "$middle:$lower" "$upper/upper" "$upper/work"
    fi
    facts "$at" "$kind" >"$OUT/$name.before"
    same "$name: the merge" "$OUT/before${kind:+.$kind}" "$OUT/$name.before"
    if [ "$upper" != none ]; then
        check "$name: changes" 30 bash -c "$(declare -f change); change \"\$1\"" - "$at" || true
        facts "$at" "$kind" >"$OUT/$name.changed"
        same "$name: after changes" "$OUT/changed${kind:+.$kind}" "$OUT/$name.changed"
        unmount_target "$at" || fail "$name: unmount"
        mount_target "$at" "$middle:$lower" "$upper/upper" "$upper/work"
        facts "$at" "$kind" >"$OUT/$name.again"
        same "$name: after a new mount" "$OUT/changed${kind:+.$kind}" "$OUT/$name.again"
        # For what is made of this union next.
        [ -z "${STAY:-}" ] || return 0
    fi
    unmount_target "$at" || fail "$name: unmount"
    [ "$({ facts "$lower" "$kind"; facts "$middle" "$kind"; } | sha256sum)" = "$layers" ] || fail "$name: a lower was changed"
}
mount_readonly() {
    timeout 30 "$BIN" -o "lowerdir=$2${UNIONFS_OPTIONS:+,$UNIONFS_OPTIONS}" "$1" || die "mount"
    MOUNTS+=("$1")
}

# image NAME MKFS...: a small file system of that kind, mounted, with both layers in it.
image() {
    local name=$1 at=$WORK/fs/$1
    shift
    mkdir -p "$at"
    truncate -s 320M "$WORK/$name.img"
    check "$name: $1" 60 "$@" "$WORK/$name.img" || return 1
    mount -o loop "$WORK/$name.img" "$at" || { fail "$name: mount"; return 1; }
    MOUNTS+=("$at")
    cp -a "$L/lower" "$L/middle" "$at/"
}
packed() { # NAME COMMAND...: a read-only file system made of the layers' directory
    local name=$1 at=$WORK/fs/$1
    shift
    mkdir -p "$at"
    check "$name: $1" 60 "$@" || return 1
    mount -o loop,ro "$WORK/$name.img" "$at" || { fail "$name: mount"; return 1; }
    MOUNTS+=("$at")
}

say "-- file systems"
if image ext4 mkfs.ext4 -q; then on ext4 "$WORK/fs/ext4/lower" "$WORK/fs/ext4/middle" "$WORK/fs/ext4"; fi
if image xfs mkfs.xfs -q -m reflink=0; then on xfs "$WORK/fs/xfs/lower" "$WORK/fs/xfs/middle" "$WORK/fs/xfs"; fi
if image xfs-reflink mkfs.xfs -q -m reflink=1; then on xfs-reflink "$WORK/fs/xfs-reflink/lower" "$WORK/fs/xfs-reflink/middle" "$WORK/fs/xfs-reflink"; fi
if image btrfs mkfs.btrfs -q; then on btrfs "$WORK/fs/btrfs/lower" "$WORK/fs/btrfs/middle" "$WORK/fs/btrfs"; fi
mkdir -p "$WORK/fs/tmpfs"
mount -t tmpfs -o size=64M tmpfs "$WORK/fs/tmpfs" && MOUNTS+=("$WORK/fs/tmpfs")
# A tmpfs has no user.* attributes on older kernels.
if cp -a "$L/lower" "$L/middle" "$WORK/fs/tmpfs/" 2>/dev/null; then kind=; else kind=bare; fi
on tmpfs "$WORK/fs/tmpfs/lower" "$WORK/fs/tmpfs/middle" "$WORK/fs/tmpfs" $kind
if packed squashfs mksquashfs "$L" "$WORK/squashfs.img" -quiet -no-progress -xattrs; then
    on squashfs "$WORK/fs/squashfs/lower" "$WORK/fs/squashfs/middle" "$WORK/upper.squashfs"
    on squashfs-read-only "$WORK/fs/squashfs/lower" "$WORK/fs/squashfs/middle" none
fi
if packed erofs mkfs.erofs -x1 "$WORK/erofs.img" "$L"; then
    on erofs "$WORK/fs/erofs/lower" "$WORK/fs/erofs/middle" "$WORK/upper.erofs"
fi
on three-file-systems "$WORK/fs/squashfs/lower" "$WORK/fs/xfs/middle" "$WORK/fs/ext4/three"
on three-others "$WORK/fs/btrfs/lower" "$WORK/fs/erofs/middle" "$WORK/fs/tmpfs/three" $kind

say "-- kernel overlayfs as a layer"
mkdir -p "$WORK/overlay"/{upper,work,merged,empty}
mount -t overlay overlay -o "lowerdir=$L/lower,upperdir=$WORK/overlay/upper,workdir=$WORK/overlay/work" "$WORK/overlay/merged" && MOUNTS+=("$WORK/overlay/merged")
on overlayfs "$WORK/overlay/merged" "$L/middle" "$WORK/upper.overlay"

say "-- a union as a layer"
mkdir -p "$WORK/inner"/{mnt,upper,work,empty}
mount_target "$WORK/inner/mnt" "$L/lower" "$WORK/inner/upper" "$WORK/inner/work"
on union "$WORK/inner/mnt" "$L/middle" "$WORK/upper.union"
# A union of unions of unions.
mkdir -p "$WORK/inner2/mnt"
mount_readonly "$WORK/inner2/mnt" "$WORK/inner/mnt:$WORK/inner/empty"
on union-of-unions "$WORK/inner2/mnt" "$L/middle" "$WORK/upper.unions"
# And of kernel overlayfs, which has its own ways (it breaks hard links when it copies up, and numbers
# change as it cannot find a FUSE inode again by a handle): after a new mount, the same on a union as on a
# plain directory.
mkdir -p "$WORK/below"
mount_readonly "$WORK/below" "$L/middle:$L/lower"
for lower in below plain; do
    mkdir -p "$WORK/top.$lower"/{upper,work,mnt}
    at=$WORK/top.$lower/mnt
    mount -t overlay overlay -o "lowerdir=$WORK/$lower,upperdir=$WORK/top.$lower/upper,workdir=$WORK/top.$lower/work" "$at" \
        || { fail "kernel overlayfs does not take $lower as its lower"; continue; }
    MOUNTS+=("$at")
    facts "$at" >"$OUT/$lower.before"
    check "overlayfs on $lower: changes" 30 bash -c "$(declare -f change); change \"\$1\"" - "$at" || true
    umount "$at" || fail "umount"
    mount -t overlay overlay -o "lowerdir=$WORK/$lower,upperdir=$WORK/top.$lower/upper,workdir=$WORK/top.$lower/work" "$at"
    facts "$at" >"$OUT/$lower.changed"
    umount "$at" || fail "umount"
    forget_mount "$at"
done
same "overlayfs on a union: the merge" "$OUT/before" "$OUT/below.before"
same "overlayfs on a union: after changes" "$OUT/plain.changed" "$OUT/below.changed"
unmount_target "$WORK/below" || fail "unmount"

say "-- layers without attributes, and where root is nobody"
mkdir -p "$WORK/fuse"/{bare,squashed}
bindfs --xattr-none "$L" "$WORK/fuse/bare" && MOUNTS+=("$WORK/fuse/bare")
on without-attributes "$WORK/fuse/bare/lower" "$WORK/fuse/bare/middle" "$WORK/upper.bare" bare
mkdir "$WORK/bare-store"
mkdir "$WORK/fuse/store"
# It gives each name of a file attributes of its own, so they must not be cached.
bindfs --xattr-none -o attr_timeout=0,entry_timeout=0 "$WORK/bare-store" "$WORK/fuse/store" && MOUNTS+=("$WORK/fuse/store")
on upper-without-attributes "$WORK/fuse/bare/lower" "$WORK/fuse/bare/middle" "$WORK/fuse/store" bare
# Served by an ordinary user's process, with his rights, whoever asks: what NFS calls root_squash.
cp -a "$L" "$WORK/theirs"
chmod 600 "$WORK/theirs/lower/dir/large"
chmod 700 "$WORK/theirs/lower/tree/b"
facts "$WORK/theirs" >"$OUT/theirs.before"
echo user_allow_other >"$WORK/etc/fuse.conf"
[ -e /etc/fuse.conf ] || touch /etc/fuse.conf
mount --bind "$WORK/etc/fuse.conf" /etc/fuse.conf
chown "$USER_ID" "$WORK/fuse/squashed"
setpriv --reuid "$USER_ID" --regid "$USER_ID" --init-groups bindfs -o allow_other "$WORK/theirs" "$WORK/fuse/squashed" || die "bindfs"
MOUNTS+=("$WORK/fuse/squashed")
mkdir -p "$WORK/squash-store"/{upper,work} "$WORK/mnt"
UNIONFS_OPTIONS=
mount_target "$WORK/mnt" "$WORK/fuse/squashed/middle:$WORK/fuse/squashed/lower" "$WORK/squash-store/upper" "$WORK/squash-store/work"
check "root squash: what the user may read is there" 20 sh -euc 'cd "$1"; test "$(cat dir/f1)" = middle; test ! -e gone; test "$(ls opaque)" = new
    test "$(cat "a name")" = blank; stat dir/large tree/b' - "$WORK/mnt"
check "root squash: what he may not is EACCES" 20 sh -euc 'cd "$1"
    cat dir/large 2>&1 | grep "Permission denied"; echo x >>dir/large && exit 1; ls tree/b 2>&1 | grep "Permission denied"' - "$WORK/mnt"
check "root squash: changes" 20 sh -euc 'cd "$1"; echo more >>dir/f1; rm dir/f2 dir/large; mkdir gone; mv "a name" dir/named
    chmod 600 dir/f4; test "$(cat dir/named)" = blank; test ! -e dir/large' - "$WORK/mnt"
unmount_target "$WORK/mnt" || fail "root squash: unmount"
facts "$WORK/theirs" >"$OUT/theirs.after"
same "root squash: the lowers are as they were" "$OUT/theirs.before" "$OUT/theirs.after"
