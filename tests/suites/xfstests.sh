#!/usr/bin/env bash
# xfstests' generic tests: xfstests.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# On unionfs and fuse-overlayfs mounted by mount(8) as fuse.NAME, over layers on ext4; overlay is
# xfstests' own way for overlayfs, over the same ext4. XFSTESTS_LIST names the tests (default: the
# group quick), XFSTESTS_SECONDS the time for each of them (120).
#
# XFSTESTS_FORM=overlay asks for its tests of overlayfs itself instead (overlay/NNN; not for those that start
# unionmount-testsuite). On unionfs they call our program where they mount overlayfs, with
# whiteout=overlay: programs that stand before mount, df and findmnt translate.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 9G perl bc gawk setfattr getfattr setfacl xfs_io mkfs.xfs

[ -x "$SOURCE/ltp/fsstress" ] || (cd "$SOURCE" && make -j2) >"$LOGS/build.log" 2>&1 \
    || die "cannot build it: $(tail -n 3 "$LOGS/build.log")"

# Users that the tests need, in files of this namespace.
for file in passwd group shadow; do
    cp "/etc/$file" "$BASE/$file"
    # A last line without an end would take the first user; `+` asks for those of the network.
    sed -i -e '$a\' -e '/^+/d' "$BASE/$file"
done
for user in fsgqa:61000 fsgqa2:61001 123456-fsgqa:61002; do
    grep -q "^${user%:*}:" "$BASE/passwd" && continue
    echo "${user%:*}:x:${user#*:}:${user#*:}::/tmp:/bin/bash" >>"$BASE/passwd"
    echo "${user%:*}:x:${user#*:}:" >>"$BASE/group"
    echo "${user%:*}:*:19000:0:99999:7:::" >>"$BASE/shadow"
done
for file in passwd group shadow; do mount --bind "$BASE/$file" "/etc/$file"; done

mkdir "$BASE/test" "$BASE/scratch" "$BASE/results"
device() { # NAME: prints a loop device with an ext4 of its own
    # overlay/001 wants to see that much room; all of it is holes.
    truncate -s 10G "$WORK/$1.img"
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$WORK/$1.img" || die "mkfs.ext4"
    losetup --find --show "$WORK/$1.img" || die "no loop device"
}
export TEST_DIR=$BASE/test SCRATCH_MNT=$BASE/scratch RESULT_BASE=$BASE/results

# translate: `mount -t overlay` is one of unionfs, which shows as one of overlay. Whether there are redirects,
# copies without data, indexes and inode numbers that stay, the suite reads in /proc/mounts, where FUSE shows no
# options; the union has them (the index as pseudo-links). What it has not is skipped.
translate() {
    local name
    mkdir "$BASE/bin"
    cat >"$BASE/bin/mount" <<'SH'
#!/bin/bash
words=()
while [ $# -gt 0 ]; do
    if [ "$1" = -t ] && [ "${2:-}" = overlay ]; then
        words+=(-t fuse.unionfs -o "whiteout=overlay${UNIONFS_OPTIONS:+,$UNIONFS_OPTIONS}")
        shift 2
    else
        words+=("$1")
        shift
    fi
done
# It can also be asked what is mounted.
[ "${words[*]/whiteout=*}" != "-t fuse.unionfs -o " ] || words=(-t fuse.unionfs)
exec REAL "${words[@]}"
SH
    # The daemon has the layers open for some milliseconds after the union is gone (docs/DESIGN.md).
    cat >"$BASE/bin/umount" <<'SH'
#!/bin/bash
for try in {1..30}; do
    said=$(REAL "$@" 2>&1) && exit 0
    status=$?
    [[ $said == *busy* ]] || break
    sleep 0.1
done
echo "$said" >&2
exit $status
SH
    printf '#!/bin/bash\nset -o pipefail\nREAL "$@" | sed "s/ fuse\\.unionfs/ overlay/"\n' >"$BASE/bin/df"
    printf '#!/bin/bash\nREAL "${@/#overlay/fuse.unionfs}"\n' >"$BASE/bin/findmnt"
    for name in mount umount df findmnt; do
        sed -i "s|REAL|$(command -v "$name")|" "$BASE/bin/$name"
        chmod +x "$BASE/bin/$name"
    done
    export PATH=$BASE/bin:$PATH
    cp "$SOURCE/common/rc" "$BASE/common-rc"
    cat >>"$BASE/common-rc" <<'SH'
_fs_options() { echo rw,xino=on; }
_check_overlay_feature() {
    case $1 in
    redirect_dir | metacopy | index) touch "$3/foo" || _notrun "nothing can be made with feature $1" ;;
    *) _notrun "the union has no feature $1" ;;
    esac
}
SH
    mount --bind "$BASE/common-rc" "$SOURCE/common/rc"
}
# give_names: fuse-overlayfs calls every mount by its own name, so the suite finds them by their places.
give_names() {
    local named="s#^fuse-overlayfs( .*)?( $TEST_DIR)\$#test-union\\1\\2#;s#^fuse-overlayfs( .*)?( $SCRATCH_MNT)\$#scratch-union\\1\\2#"
    printf '#!/bin/bash\n%s "$@" | sed -E '\''s/ fuse\\.[a-z-]*/ fuse/;%s'\''\n' "$(command -v df)" "$named" >"$BASE/bin/df"
    cat >"$BASE/bin/findmnt" <<SH
#!/bin/bash
words=()
while [ \$# -gt 0 ]; do
    case "\$1 \$2" in
    "-S test-union") words+=(-M "$TEST_DIR"); shift 2 ;;
    "-S scratch-union") words+=(-M "$SCRATCH_MNT"); shift 2 ;;
    *) words+=("\$1"); shift ;;
    esac
done
$(command -v findmnt) "\${words[@]}" | sed -E '$named'
SH
    cat >"$BASE/bin/umount" <<SH
#!/bin/bash
words=("\${@/#test-union/$TEST_DIR}")
exec $(command -v umount) "\${words[@]/#scratch-union/$SCRATCH_MNT}"
SH
    chmod +x "$BASE"/bin/*
}
how=() LOOPS=() form=${XFSTESTS_FORM:-generic}
case $TARGET-$form in
plain-* | overlay-* | unionfs-overlay)
    export FSTYP=ext4
    TEST_DEV=$(device test) SCRATCH_DEV=$(device scratch)
    LOOPS=("$TEST_DEV" "$SCRATCH_DEV")
    [ "$TARGET" = plain ] || how=(-overlay)
    [ "$TARGET" != unionfs ] || translate
    ;;
*)
    export FSTYP=fuse FUSE_SUBTYP=.$TARGET
    TEST_DEV=test-union SCRATCH_DEV=scratch-union
    for name in test scratch; do mkdir -p "$WORK/$name"/{lower,upper,work}; done
    layers() { echo "-olowerdir=$WORK/$1/lower,upperdir=$WORK/$1/upper,workdir=$WORK/$1/work${UNIONFS_OPTIONS:+,$UNIONFS_OPTIONS}"; }
    TEST_FS_MOUNT_OPTS=$(layers test) MOUNT_OPTIONS=$(layers scratch)
    export TEST_FS_MOUNT_OPTS MOUNT_OPTIONS
    # It asks df for the type and expects `fuse`, without the name that follows.
    mkdir "$BASE/bin"
    printf '#!/bin/bash\nset -o pipefail\n%s "$@" | sed "s/ fuse\\.[a-z-]*/ fuse/"\n' "$(command -v df)" >"$BASE/bin/df"
    chmod +x "$BASE/bin/df"
    [ "$TARGET" != fuse-overlayfs ] || give_names
    export PATH=$BASE/bin:$PATH
    ;;
esac
export TEST_DEV SCRATCH_DEV
at_end() {
    local loop
    umount -l "$TEST_DIR" "$SCRATCH_MNT" 2>/dev/null
    for loop in "${LOOPS[@]}"; do
        umount -l "$loop" 2>/dev/null
        losetup -d "$loop"
    done
}

# The tests of a process each, so that one that hangs can be ended.
one() {
    local test=$1 log=$LOGS/${1//\//-}.log status=0 why
    timeout -k 20 "${XFSTESTS_SECONDS:-120}" "$SOURCE/check" "${how[@]}" "$test" >"$log" 2>&1 </dev/null || status=$?
    if grep -q "^$test .*\[not run\]" "$log"; then
        echo "$test skipped $(sed -n "s|^$test .*\[not run\] *||p" "$log")"
    elif [ "$status" -eq 0 ] && grep -q "^Passed all 1 tests" "$log"; then
        echo "$test ok"
    else
        if [ "$status" -ge 124 ]; then
            why="timed out, "
            umount -Rl "$TEST_DIR" "$SCRATCH_MNT" 2>/dev/null
        fi
        echo "$test failed ${why:-}$(grep -m 3 '^ *[-+][^-+]' "$log" | tr -s ' \n' ' ' | cut -c 1-200)"
    fi
}
case $form in
generic) chosen='/ quick/' ;;
overlay) chosen='/ quick/ && !/ union/' ;;
*) die "no form $form of xfstests" ;;
esac
list=${XFSTESTS_LIST:-$(awk "/^[0-9]/ && $chosen { print \"$form/\" \$1 }" "$SOURCE/tests/$form/group.list")}
cd "$SOURCE"
for test in $list; do one "$test" >>"$RESULTS"; done
judge
