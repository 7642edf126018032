#!/usr/bin/env bash
# stress-ng's filesystem class, with its own checks, for two minutes on a fresh mount:
# stress-ng.sh [unionfs|overlay|plain|fuse-overlayfs]
#
# Each stressor by itself in two processes, which work on one directory, then many kinds at the same
# time. Whatever a stressor finds wrong is a failure; how much it got done is not looked at, so this
# holds on slow machines. STRESS_SECONDS sets another length.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TARGETS=(unionfs overlay plain fuse-overlayfs)
suite_start "${1:-unionfs}" ram 2G stress-ng sha256sum

# Of the class, those that work in a directory. Not bind-mount, binderfs, procfs and eventfd, which are
# about other filesystems; not io, which is sync(2) of the whole machine; not verity, which
# ext4 has only when made for it.
ALONE=(access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify fcntl
    fiemap file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify iomix ioprio lease link
    locka lockf lockofd mknod open rename symlink sync-file touch utime xattr)
TOGETHER=(access chmod copy-file dentry dir dirdeep fallocate filename flock fpunch getdent hdd iomix link lockf open
    rename symlink touch utime xattr)
SECONDS_ALL=${STRESS_SECONDS:-120}
EACH=$((SECONDS_ALL * 3 / 4 / ${#ALONE[@]}))
[ "$EACH" -gt 0 ] || EACH=1
# Bounds for what grows with the machine.
BOUNDS=(--hdd-bytes 32M --iomix-bytes 32M --fallocate-bytes 32M --copy-file-bytes 128M --dentries 512
    --dirdeep-inodes 2000 --sync-file-bytes 16M)

mkdir -p "$WORK"/{empty,lower/inside/deep,upper,work,mnt}
for name in $(seq 200); do echo "$name" >"$WORK/lower/inside/deep/$name"; done
# Everybody may come in: stress-ng drops privileges here and there.
chmod 1777 "$WORK/lower/inside/deep"
state() { (cd "$1" && find . -printf '%p %y %m %U %G %s %T@ %l\n' | sort && find . -type f -exec sha256sum {} + | sort); }
state "$WORK/lower" >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
state "$WORK/mnt/inside/deep" >"$LOGS/deep.before"

# stress NAME SECONDS ARGUMENTS...: stress-ng exits with 0 when all is well, 3 when there is nothing
# like that to test here; a stressor that found a fault writes a line with `fail:`.
stress() {
    local name=$1 seconds=$2 log status=0
    shift 2
    log=$LOGS/$name.log
    # At its end each stressor takes away what it made: time for that on a slow machine.
    timeout -k 10 $((seconds + 120)) stress-ng --verify --temp-path "$WORK/mnt/inside/deep" --timeout "${seconds}s" \
        "${BOUNDS[@]}" "$@" >"$log" 2>&1 </dev/null &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=
    if [ "$status" -eq 3 ] && ! grep -q ' fail: ' "$log"; then
        say "  skipped $name: $(grep -m 1 -i 'skip\|not ' "$log")"
    elif [ "$status" -ne 0 ] || grep -q ' fail: ' "$log"; then
        fail "$name: exit status $status (124: timed out)"
        grep -m 10 'fail:\|error:\|range' "$log" | sed "s/^/            /" || true
    else
        PASSED=$((PASSED + 1))
    fi
}

for stressor in "${ALONE[@]}"; do stress "$stressor" "$EACH" "--$stressor" 2; done
say "  $PASSED stressors by themselves, $EACH s each ($SECONDS s)"
all=()
for stressor in "${TOGETHER[@]}"; do all+=("--$stressor" 1); done
stress together $((SECONDS_ALL / 4)) "${all[@]}"
say "  ${#TOGETHER[@]} together, $((SECONDS_ALL / 4)) s ($SECONDS s)"

# They took away all they made, and what was there before is as it was, after a remount too.
state "$WORK/mnt/inside/deep" >"$LOGS/deep.after"
changes() { diff <(grep -v '^\. ' "$1") <(grep -v '^\. ' "$2"); }
check "what was there is unchanged" 60 bash -c "$(declare -f changes); changes '$LOGS/deep.before' '$LOGS/deep.after'" || true
if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
if [ "$TARGET" != plain ]; then
    mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    state "$WORK/mnt/inside/deep" >"$LOGS/deep.remounted"
    check "and after a remount" 60 cmp "$LOGS/deep.after" "$LOGS/deep.remounted" || true
    if unmount_target "$WORK/mnt"; then pass "unmount again"; else fail "unmount again"; fi
    state "$WORK/lower" >"$LOGS/lower.after"
    check "the lower is unchanged" 60 cmp "$LOGS/lower.before" "$LOGS/lower.after" || true
fi
