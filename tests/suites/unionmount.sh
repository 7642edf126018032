#!/usr/bin/env bash
# unionmount-testsuite, of overlayfs's developers: unionmount.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# Its cases look at the merge, and at the layers for what was copied up: once with two layers and once
# with up to ten, where the upper becomes the first lower during a case. On the union in both forms of
# whiteouts. `--verify` asks for inode numbers that stay and for nothing in the upper that need not be
# there. Each script of the suite stops at its first failure.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 1G python3

mkdir "$WORK/mnt" "$WORK/base" "$WORK/lower"
case $TARGET in
plain) how=(--no) ;;
overlay) how=(--ov=10) ;;
*) how=(--ov=10 "--fuse=$TARGET") ;;
esac

# cases NAME OPTIONS FLAGS [PATTERN]: each test of the suite in a process of its own, so that a failure
# does not end the others.
cases() {
    local name=$1 options=$2 flags=$3 pattern=${4:-*} test log status
    for test in "$SOURCE"/tests/$pattern.py; do
        test=$(basename "$test" .py)
        # rename-exdev is for overlays that cannot rename directories; some are not in the suite's own list.
        if [ "$test" = rename-exdev ] || ! grep -q "\"$test\"" "$SOURCE/run"; then continue; fi
        log=$LOGS/$name-$test.log
        status=0
        # shellcheck disable=SC2086 # no flag or one
        (cd "$SOURCE" && UNIONMOUNT_BASEDIR=$WORK/base UNIONMOUNT_MNTPOINT=$WORK/mnt UNIONMOUNT_MNTOPTIONS=$options \
            PYTHONDONTWRITEBYTECODE=1 timeout -k 10 300 python3 ./run "${how[@]}" $flags "$test") >"$log" 2>&1 </dev/null || status=$?
        record "$name" "$test" "$log" "$status"
    done
    (cd "$SOURCE" && UNIONMOUNT_BASEDIR=$WORK/base UNIONMOUNT_MNTPOINT=$WORK/mnt timeout 60 python3 ./run -c) >/dev/null 2>&1
}

# Each line `TEST` begins a case; the last of them is the one that failed, if any.
record() {
    local name=$1 test=$2 log=$3 status=$4
    awk -v name="$name" -v test="$test" -v status="$status" -v why="$(tail -n 1 "$log" | tr -d "\0")" '
        /^TEST / { if (n++) print name "/" test "/" n - 1, "ok" }
        END {
            if (status == 0 && n) print name "/" test "/" n, "ok"
            else print name "/" test "/" n + 0, "failed", why
        }' "$log" >>"$RESULTS"
}

case $TARGET in
unionfs)
    # --verify wants to find nothing in the upper of a directory that was renamed, which is so with
    # redirects only. What the union shows is asked of rename_dir=copy too.
    cases aufs rename_dir=redirect --verify
    cases overlay whiteout=overlay,rename_dir=redirect --verify
    cases aufs-copy rename_dir=copy "" "rename-*"
    cases overlay-copy whiteout=overlay,rename_dir=copy "" "rename-*"
    ;;
*) cases "$TARGET" "" --verify ;;
esac
judge
