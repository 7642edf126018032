# Shared by the suites that others wrote. Their sources are no part of this repository; each is run as
#
#     NAME.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# with a checkout of it, which it builds there if it has to. A suite calls `third_start "$@"` with what
# suite_start takes after the target; then, beside what lib.sh gives:
#   $SOURCE    SOURCE_DIR; empty for suites that come as a package and were given `-`
#   $RESULTS   a file for one line a case: NAME ok|failed|skipped [why]
# and mount(8) knows the types fuse.unionfs and fuse.fuse-overlayfs. `judge` counts the results.
# shellcheck shell=bash
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TARGETS=(unionfs plain overlay fuse-overlayfs)

# third_start SOURCE_DIR TARGET ram|disk SIZE TOOLS...
third_start() {
    local from=$1 target=${2:-unionfs}
    shift 2
    [ -n "$from" ] || { echo "usage: $(basename "$0") SOURCE_DIR [$(tr ' ' '|' <<<"${TARGETS[*]}")]" >&2; exit 2; }
    if [ "$from" = - ]; then SOURCE=; else SOURCE=$(realpath "$from"); fi
    SUITE_WORDS=("$from" "$target")
    [ -z "$SOURCE" ] || [ -d "$SOURCE" ] || die "no directory $SOURCE"
    suite_start "$target" "$@"
    RESULTS=$LOGS/results
    : >"$RESULTS"
    install_programs
}

# The program under test, and our helper of mount(8), in /sbin: an overlay that only this namespace
# sees, so nothing is installed on the machine.
install_programs() {
    local built=${UNIONFS_BIN%/*} sbin=$BASE/sbin
    mkdir "$sbin"
    case $TARGET in
    unionfs)
        [ -x "$built/mount-unionfs" ] || die "no $built/mount-unionfs (cargo build --release --workspace)"
        cp "$UNIONFS_BIN" "$sbin/unionfs"
        cp "$built/mount-unionfs" "$sbin/mount.unionfs"
        ln -s mount.unionfs "$sbin/mount.fuse.unionfs"
        UNIONFS_BIN=$(realpath /sbin)/unionfs
        ;;
    fuse-overlayfs) cp "$(command -v "$FUSE_OVERLAYFS")" "$sbin/fuse-overlayfs" ;;
    *) return ;;
    esac
    mount -t overlay -o "lowerdir=$sbin:$(realpath /sbin)" overlay /sbin || die "cannot mount an overlay on /sbin"
    export PATH=/usr/sbin:$PATH
}

# state DIR: a line for each object: all that stat(2) says but number, links and access time, and a sum of
# its data, in which zeros do not count, as suites make files of gigabytes with few data.
state() {
    python3 - "$1" <<'PY'
import hashlib, os, stat, sys

def data(path):
    total = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY)
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // 4096 * 4096
            end = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError:
            break
        while at < end:
            block = os.pread(fd, 4096, at)
            if not block:
                break
            if block.strip(b"\0"):
                total.update(b"%d " % at + block.rstrip(b"\0"))
            at += 4096
    os.close(fd)
    return total.hexdigest()

top = os.fsencode(sys.argv[1])
paths = [os.path.join(d, n) for d, dirs, files in os.walk(top) for n in dirs + files]
for path in sorted(paths):
    s = os.lstat(path)
    size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
    what = data(path) if stat.S_ISREG(s.st_mode) else os.readlink(path) if stat.S_ISLNK(s.st_mode) else ""
    print(os.path.relpath(path, top), oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, size, s.st_mtime_ns, what)
PY
}

# excluded LIST NAME: whether a pattern of the list names it.
excluded() {
    local pattern
    [ -e "$1" ] || return 1
    while read -r pattern _; do
        # shellcheck disable=SC2053 # a pattern on purpose
        [[ $2 != $pattern ]] || return 0
    done < <(grep -v -e '^#' -e '^$' "$1")
    return 1
}

# judge: counts $RESULTS. On the union a case has to pass that NAME.exclude does not name; on the
# others failures are only told, to be put beside ours. A line of the list is a pattern of names and
# a reason.
judge() {
    local list name result why ok=0 bad=0 skipped=0 allowed=0
    list=$SUITES/$(basename "$0" .sh).exclude
    while read -r name result why; do
        case $result in
        ok) ok=$((ok + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
        *)
            if [ "$TARGET" != unionfs ]; then
                bad=$((bad + 1))
                say "  fails   $name: $why"
            elif excluded "$list" "$name"; then
                allowed=$((allowed + 1))
            else
                bad=$((bad + 1))
                fail "$name: $why"
            fi
            ;;
        esac
    done <"$RESULTS"
    PASSED=$((PASSED + ok))
    [ $((ok + bad + allowed)) -gt 0 ] || fail "no case ran"
    say "$(basename "$0" .sh) on $TARGET: $ok passed, $((bad + allowed)) failed ($allowed of them excluded with a reason), $skipped skipped"
}
