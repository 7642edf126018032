#!/usr/bin/env bash
# xfstests' generic tests: xfstests.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# On unionfs and fuse-overlayfs mounted by mount(8) as fuse.NAME, over layers on ext4; overlay is
# xfstests' own way for overlayfs, over the same ext4. XFSTESTS_LIST names the tests (default: the
# group quick), XFSTESTS_SECONDS the time for each of them (120).
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 9G perl bc gawk setfattr getfattr setfacl xfs_io mkfs.xfs

[ -x "$SOURCE/ltp/fsstress" ] || (cd "$SOURCE" && make -j2) >"$LOGS/build.log" 2>&1 \
    || die "cannot build it: $(tail -n 3 "$LOGS/build.log")"

# Users that the tests need, in files of this namespace.
for file in passwd group shadow; do
    cp "/etc/$file" "$BASE/$file"
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
    truncate -s 4G "$WORK/$1.img"
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$WORK/$1.img" || die "mkfs.ext4"
    losetup --find --show "$WORK/$1.img" || die "no loop device"
}
export TEST_DIR=$BASE/test SCRATCH_MNT=$BASE/scratch RESULT_BASE=$BASE/results
how=() LOOPS=()
case $TARGET in
plain | overlay)
    export FSTYP=ext4
    TEST_DEV=$(device test) SCRATCH_DEV=$(device scratch)
    LOOPS=("$TEST_DEV" "$SCRATCH_DEV")
    [ "$TARGET" = plain ] || how=(-overlay)
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
        [ "$status" -lt 124 ] || why="timed out, "
        echo "$test failed ${why:-}$(grep -m 3 '^ *[-+][^-+]' "$log" | tr -s ' \n' ' ' | cut -c 1-200)"
    fi
}
list=${XFSTESTS_LIST:-$(awk '/^[0-9]/ && / quick/ { print "generic/" $1 }' "$SOURCE/tests/generic/group.list")}
cd "$SOURCE"
for test in $list; do one "$test" >>"$RESULTS"; done
judge
