#!/usr/bin/env bash
# The store of Docker's overlay2 driver, mounted from its directories, in turns with the kernel:
# docker-overlay.sh
#
#   overlay2/l/SHORT     a short name of a layer's directory: a link to ../ID/diff
#   overlay2/ID/link     that short name
#   overlay2/ID/lower    the layers below, as l/SHORT:l/SHORT, the nearest first
#   overlay2/ID/{diff,merged,work}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 1G getfattr tar

STORE=$WORK/overlay2
mkdir -p "$STORE/l"
cd "$STORE"

# layer ID PARENT: a new layer, below which are PARENT and what is below that.
layer() {
    local short
    mkdir -p "$1"/{diff,merged,work}
    short=$(printf '%s' "$1" | sha256sum | tr a-f A-F | cut -c1-26)
    ln -s "../$1/diff" "l/$short"
    printf '%s' "$short" >"$1/link"
    [ -z "${2:-}" ] || printf 'l/%s%s' "$(cat "$2/link")" "$([ ! -e "$2/lower" ] || echo ":$(cat "$2/lower")")" >"$1/lower"
}
# Docker's calls: relative to the driver's directory, since the option text is limited to a page.
by_kernel() { mount -t overlay overlay -o "lowerdir=$(cat "$1/lower"),upperdir=$1/diff,workdir=$1/work" "$1/merged"; }
by_us() { "$BIN" -o "lowerdir=$(cat "$1/lower"),upperdir=$1/diff,workdir=$1/work,whiteout=overlay" "$STORE/$1/merged"; }
with() { # KERNEL_OR_US ID COMMAND...: mounts, runs, unmounts
    local how=$1 id=$2
    shift 2
    "$how" "$id" || { fail "$how $id"; return 1; }
    MOUNTS+=("$STORE/$id/merged")
    "$@" "$STORE/$id/merged"
    if [ "$how" = by_us ]; then unmount_target "$STORE/$id/merged"; else
        umount "$STORE/$id/merged"
        forget_mount "$STORE/$id/merged"
    fi || fail "umount $id"
}
# Our private attributes are nobody's business, but root sees them through the kernel's overlayfs.
facts() { FACTS_SINCE=$WORK/since bash "$HERE/facts.sh" "$1" | grep -v 'trusted\.unionfs\.'; }
# compared NAME ID: both show the same tree.
compared() {
    with by_kernel "$2" facts >"$OUT/$2.kernel"
    with by_us "$2" facts >"$OUT/$2.ours"
    same "$1" "$OUT/$2.kernel" "$OUT/$2.ours"
}

layer base
mkdir -p base/diff/{etc,dir/sub/deep,gone,again,moves}
for n in 1 2 3 4 5; do echo "$n" >"base/diff/dir/f$n"; echo "$n" >"base/diff/gone/f$n"; echo "$n" >"base/diff/again/f$n"; done
echo deep >base/diff/dir/sub/deep/file
echo moves >base/diff/moves/file
setfattr -n user.comment -v text base/diff/dir/f1
find base/diff -exec touch -h -d 2018-01-01 {} +
touch -d 2019-01-01 "$WORK/since"

first() { sh -euc 'cd "$1"; rm -r gone again dir/f1; mkdir again; echo new >again/new; echo 2b >>dir/f2; mv dir/f3 dir/moved
    ln -s f2 dir/soft; chmod 4755 dir/f4; chown 3:4 dir/sub; rm dir/sub/deep/file' - "$1"; }
second() { sh -euc 'cd "$1"; echo back >gone; echo f1 >dir/f1; rm again/new; rmdir again; echo file >again; rm dir/soft
    mkdir dir/soft; touch dir/soft/in; mv dir/sub dir/sub2; ln dir/f5 dir/f5.link' - "$1"; }
third() { sh -euc 'cd "$1"; rm again gone; mkdir gone; mv dir/soft gone/soft; rm dir/f1; echo f1 >gone/f1; mv dir/sub2 dir/sub
    chmod 600 dir/f4; rm -r moves; echo x >>dir/f5' - "$1"; }
fourth() { sh -euc 'cd "$1"; rm -r gone; echo gone >gone; rm dir/f2; mkdir moves; echo y >dir/sub/y' - "$1"; }

layer image base
with by_kernel image first
layer container image
compared "an image that the kernel made" container
with by_us container second
compared "a container that we worked in" container
# And the reverse: the kernel on our layer, we on the kernel's.
layer second container
compared "our layer below" second
with by_kernel second third
compared "the kernel's layer above ours" second
layer newest second
with by_us newest fourth
compared "layers of both in turn" newest

# A layer as Docker sends it to a registry: .wh. names in a tarball; unpacked by us, without
# translation, it means the same.
mkdir -p "$WORK/plain"
layer sent base
mkdir -p sent/diff/{dir,again}
: >sent/diff/.wh.gone
: >sent/diff/again/.wh..wh..opq
: >sent/diff/dir/.wh.f1
echo new >sent/diff/again/new
layer received sent
cp -a base/diff/. "$WORK/plain"
rm -r "$WORK/plain"/{gone,dir/f1,again/*}
echo new >"$WORK/plain/again/new"
facts "$WORK/plain" >"$OUT/plain"
with by_us received facts >"$OUT/received"
same "a layer in the form of a tarball" "$OUT/plain" "$OUT/received"
