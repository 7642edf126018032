#!/usr/bin/env bash
# The store of a Docker that used aufs, mounted as that Docker did: docker-aufs.sh
#
#   aufs/layers/ID   the layers below ID, the nearest first
#   aufs/diff/ID     what is in it, with aufs's whiteouts
#   aufs/mnt/ID      where a container's tree is mounted
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 1G getfattr tar

STORE=$WORK/aufs
mkdir -p "$STORE"/{layers,diff/{base,middle,container},mnt/container} "$WORK/expected"
D=$STORE/diff
E=$WORK/expected

# An image of two layers.
: >"$STORE/layers/base"
echo base >"$STORE/layers/middle"
mkdir -p "$D"/base/{etc,dir/sub,opaque/old,gone,kept}
echo root >"$D/base/etc/passwd"
for n in a b c d; do echo "$n of base" >"$D/base/dir/$n"; done
echo deep >"$D/base/dir/sub/deep"
echo old >"$D/base/opaque/old/file"
echo gone >"$D/base/gone/file"
echo linked >"$D/base/kept/one"
ln "$D/base/kept/one" "$D/base/kept/two"
chmod 4755 "$D/base/dir/d"
mkdir -p "$D"/middle/{dir,opaque}
: >"$D/middle/.wh.gone"
: >"$D/middle/dir/.wh.a"
echo "b of middle" >"$D/middle/dir/b"
: >"$D/middle/opaque/.wh..wh..opq"
echo new >"$D/middle/opaque/new"

# A container's layer as aufs leaves it: whiteouts are hard links to .wh..wh.aufs; what is in
# .wh..wh.orph and .wh..wh.plnk, and temporaries, do not belong to the tree.
printf 'middle\nbase\n' >"$STORE/layers/container"
R=$D/container
: >"$R/.wh..wh.aufs"
chmod 444 "$R/.wh..wh.aufs"
mkdir -m 700 "$R/.wh..wh.orph" "$R/.wh..wh.plnk"
mkdir -p "$R/dir/sub" "$R/etc"
ln "$R/.wh..wh.aufs" "$R/dir/.wh.c"
ln "$R/.wh..wh.aufs" "$R/dir/sub/.wh..wh..opq"
ln "$R/.wh..wh.aufs" "$R/.wh.opaque"
echo container >"$R/etc/hostname"
echo orphan >"$R/.wh..wh.orph/.wh..wh.00000001"
echo unfinished >"$R/dir/.wh..wh.0123abcd"
echo plink >"$R/.wh..wh.plnk/1234.5678"

# The same by ordinary commands.
cp -a "$D/base/." "$E"
rm -r "$E/gone" "$E/dir/a" "$E/opaque" "$E/dir/c" "$E/dir/sub/deep"
echo "b of middle" >"$E/dir/b"
echo container >"$E/etc/hostname"
find "$E" "$D" -exec touch -h -d 2015-01-01 {} +
touch -d 2016-01-01 "$WORK/since"

facts() { FACTS_SINCE=$WORK/since bash "$HERE/facts.sh" "$1"; }
# What Docker gave to mount(2); the xino file was in /dev/shm.
aufs_options() {
    local options layer
    options=br:$D/$1=rw
    while read -r layer; do options+=:$D/$layer=ro+wh; done <"$STORE/layers/$1"
    echo "$options,dio,noplink,nowarn_perm,dirperm1,xino=/dev/shm/aufs.xino"
}
docker_mount() {
    mkdir -p "$STORE/mnt/$1"
    check "$2" 30 "$BIN" mount -o "$(aufs_options "$1")" none "$STORE/mnt/$1" || exit 1
    MOUNTS+=("$STORE/mnt/$1")
}
docker_unmount() {
    if unmount_target "$STORE/mnt/$1"; then pass "$2"; else fail "$2"; fi
}

facts "$D/base" >"$OUT/base.before"
facts "$D/middle" >"$OUT/middle.before"
docker_mount container "mount the container"
facts "$E" >"$OUT/expected"
facts "$STORE/mnt/container" >"$OUT/merged"
same "the container's tree" "$OUT/expected" "$OUT/merged"

# The container goes on working.
for at in "$E" "$STORE/mnt/container"; do
    check "work in $(basename "$at")" 30 sh -euc '
        cd "$1"; rm dir/b kept/two; echo again >dir/a; mkdir opaque; echo here >opaque/here; mv dir/sub dir/moved
        rm -r etc; mkdir etc; echo more >>kept/one; ln dir/d kept/d; chown 5:6 dir/d; chmod 2755 dir/d' - "$at"
done
facts "$E" >"$OUT/expected.worked"
facts "$STORE/mnt/container" >"$OUT/merged.worked"
same "the tree after work in it" "$OUT/expected.worked" "$OUT/merged.worked"
docker_unmount container "unmount"
check "whiteouts are links to the layer's .wh..wh.aufs" 10 \
    sh -euc 'test "$1/dir/.wh.b" -ef "$1/.wh..wh.aufs"; test -e "$1/etc/.wh..wh..opq"; test ! -e "$1/.wh.opaque" || test -d "$1/opaque"' - "$R"
check "the sweep took what aufs left half done" 10 test ! -e "$R/.wh..wh.orph/.wh..wh.00000001"
docker_mount container "mount again"
facts "$STORE/mnt/container" >"$OUT/merged.again"
same "the tree after a new mount" "$OUT/expected.worked" "$OUT/merged.again"
docker_unmount container "unmount again"

# docker commit: the layer without aufs's own objects, as a tarball, becomes a layer of an image.
mkdir "$D/committed" "$D/second"
tar -C "$R" --exclude='.wh..wh.aufs' --exclude='.wh..wh.orph' --exclude='.wh..wh.plnk' --exclude='.wh..wh.????????' -cf - . \
    | tar -C "$D/committed" -xpf -
printf 'middle\nbase\n' >"$STORE/layers/committed"
printf 'committed\nmiddle\nbase\n' >"$STORE/layers/second"
docker_mount second "mount a container of the commit"
facts "$STORE/mnt/second" >"$OUT/second"
same "the tree of the commit" "$OUT/expected.worked" "$OUT/second"
docker_unmount second "unmount it"

for layer in base middle; do
    facts "$D/$layer" >"$OUT/$layer.after"
    same "layer $layer is as it was" "$OUT/$layer.before" "$OUT/$layer.after"
done
