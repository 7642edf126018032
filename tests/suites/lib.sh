# Shared by the suites: a private mount namespace, an ext4 image to put the layers on, one way
# to mount each of the three targets, and a clean-up that always runs.
#
# A suite calls `suite_start "$@"` first. Then:
#   $TARGET    unionfs | overlay | plain
#   $WORK      a fresh ext4, gone afterwards
#   $BASE      the directory that holds all of this
#   $LOGS      a fresh directory for logs; kept when something failed
# shellcheck shell=bash

set -euo pipefail
export LC_ALL=C

SUITES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$SUITES/../.." && pwd)
UNIONFS_BIN=${UNIONFS_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/release/unionfs}
# The peer, where a suite can be run on it.
FUSE_OVERLAYFS=${FUSE_OVERLAYFS:-fuse-overlayfs}

PASSED=0
FAILED=0
MOUNTS=()
CONNECTIONS=()
CHILD=

say() { printf '%s\n' "$*"; }

# A suite that cannot run is a failure, and says what is missing.
die() {
    printf 'CANNOT RUN: %s\n' "$*" >&2
    FAILED=$((FAILED + 1))
    exit 1
}

pass() {
    PASSED=$((PASSED + 1))
    say "  ok      $*"
}

fail() {
    FAILED=$((FAILED + 1))
    say "  FAILED  $*"
}

# check NAME SECONDS COMMAND...: runs one step under a time limit; its output goes to a log that
# is shown when the step fails. Returns 1 on failure, so that dependent steps can be left out.
check() {
    local name=$1 seconds=$2 log started status=0
    shift 2
    log="$LOGS/${name//[^A-Za-z0-9_.-]/_}.log"
    started=$SECONDS
    # In the background, so that a signal to the suite is not held up by the step.
    timeout -k 10 "$seconds" "$@" >"$log" 2>&1 </dev/null &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=
    if [ "$status" -eq 0 ]; then
        pass "$name ($((SECONDS - started)) s)"
        return 0
    fi
    fail "$name: exit status $status after $((SECONDS - started)) s (124: timed out); last lines:"
    tail -n 25 "$log" | sed 's/^/            /'
    return 1
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || die "'$tool' is not installed (.ci/run installs everything)"
    done
}

# What a suite can be run on, first the default; others set it before suite_start.
TARGETS=(unionfs overlay plain)
# What else than its mounts a suite has for itself: options of unshare(1).
NAMESPACES=()
# Words before a command that has somebody else run it, who then mounts.
AS=()
# The words to start it with there, where they are more than the target.
SUITE_WORDS=()

# suite_start TARGET ram|disk SIZE TOOLS...: in memory, fsync costs nothing, so that the time goes
# to the file system under test; on disk there is room.
suite_start() {
    local store=$2 size=$3
    TARGET=${1:-${TARGETS[0]}}
    shift 3
    if [[ " ${TARGETS[*]} " != *" $TARGET "* ]]; then
        echo "usage: $(basename "$0") [$(tr ' ' '|' <<<"${TARGETS[*]}")]" >&2
        exit 2
    fi
    # A namespace of its own: nothing is left mounted on the machine even if this is killed.
    if [ -z "${SUITE_NAMESPACE:-}" ]; then
        command -v unshare >/dev/null || die "'unshare' (util-linux) is not installed"
        [ "$(id -u)" -eq 0 ] || die "the suites need root: they change owners, mount and chroot"
        exec env SUITE_NAMESPACE=1 unshare --mount --propagation private "${NAMESPACES[@]}" \
            bash "$(realpath "$0")" "${SUITE_WORDS[@]:-$TARGET}"
    fi
    need timeout mkfs.ext4 mount umount mountpoint "$@"
    case $TARGET in
    overlay | plain) ;;
    fuse-overlayfs) need "$FUSE_OVERLAYFS" ;;
    *) [ -x "$UNIONFS_BIN" ] || die "no binary $UNIONFS_BIN (cargo build --release, or set UNIONFS_BIN)" ;;
    esac
    [ "$TARGET" = overlay ] || [ "$TARGET" = plain ] || [ -c /dev/fuse ] || die "no /dev/fuse"
    BASE=$(mktemp -d "${TMPDIR:-/tmp}/unionfs-suite.XXXXXX")
    chmod 755 "$BASE"
    LOGS=$BASE/logs
    WORK=$BASE/work
    mkdir "$LOGS" "$WORK" "$BASE/store"
    # The closing lines go to the real output, even if the end comes within a redirection.
    exec 3>&1
    trap suite_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    [ "$store" = disk ] || mount -t tmpfs -o "size=$size" tmpfs "$BASE/store"
    # Lazy initialisation would go on writing in the background.
    truncate -s "$size" "$BASE/store/image"
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$BASE/store/image" || die "mkfs.ext4"
    mount -o loop "$BASE/store/image" "$WORK" || die "cannot mount a loop image (needs /dev/loop*)"
    say "== $(basename "$0" .sh) on $TARGET"
}

# mount_target MOUNTPOINT LOWERS UPPER WORKDIR: LOWERS is L1:L2..., first on top. On the plain
# target the mount point becomes a file system of its own that holds what the merge would show.
mount_target() {
    local at=$1 lowers=$2 upper=$3 workdir=$4
    case $TARGET in
    plain) mount_plain "$at" "$lowers" ;;
    overlay)
        timeout 60 mount -t overlay overlay \
            -o "lowerdir=$lowers,upperdir=$upper,workdir=$workdir" "$at" || die "overlay mount"
        ;;
    unionfs)
        RUST_LOG=${RUST_LOG:-warn} timeout 60 "${AS[@]}" "$UNIONFS_BIN" mount \
            -o "lowerdir=$lowers,upperdir=$upper,workdir=$workdir${UNIONFS_OPTIONS:+,$UNIONFS_OPTIONS}" "$at" 3>&- \
            || die "unionfs mount failed"
        "${AS[@]}" mountpoint -q "$at" || die "unionfs returned 0 but $at is no mount point"
        note_connection "$at"
        ;;
    fuse-overlayfs)
        timeout 60 "$FUSE_OVERLAYFS" -o "lowerdir=$lowers,upperdir=$upper,workdir=$workdir" "$at" 3>&- \
            || die "fuse-overlayfs mount failed"
        note_connection "$at"
        ;;
    esac
    MOUNTS+=("$at")
}

# note_connection MOUNTPOINT: the minor number of st_dev names the FUSE connection, to abort it should
# it hang.
note_connection() {
    CONNECTIONS+=("$(awk -v at="$1" '$5 == at { split($3, d, ":"); n = d[2] } END { print n }' \
        /proc/self/mountinfo)")
}

mount_plain() {
    local at=$1 lowers=$2 lower
    if [ -e "$BASE/store/plain" ]; then
        mount -o loop "$BASE/store/plain" "$at" || die "cannot mount a loop image"
        return
    fi
    truncate -s 4G "$BASE/store/plain"
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$BASE/store/plain" || die "mkfs.ext4"
    mount -o loop "$BASE/store/plain" "$at" || die "cannot mount a loop image"
    rmdir "$at/lost+found"
    for lower in $(tr ':' '\n' <<<"$lowers" | tac); do
        cp -a "$lower/." "$at/"
    done
}

# unmount_target MOUNTPOINT: fails when the mount or its daemon stays behind.
unmount_target() {
    local at=$1 tries
    if [ "$TARGET" = unionfs ]; then
        timeout 60 "$UNIONFS_BIN" umount "$at" || return 1
    else
        timeout 60 umount "$at" || return 1
    fi
    ! mountpoint -q "$at" || { say "$at is still mounted"; return 1; }
    forget_mount "$at"
    [ "$TARGET" = unionfs ] || return 0
    # The daemon, found by our own unique mount point on its command line, has to end.
    for tries in $(seq 100); do
        daemons_of "$at" >/dev/null || return 0
        sleep 0.1
    done
    say "after $tries tries the daemon of $at still runs: $(daemons_of "$at")"
    return 1
}

forget_mount() {
    local mount kept=()
    for mount in "${MOUNTS[@]}"; do
        [ "$mount" = "$1" ] || kept+=("$mount")
    done
    MOUNTS=("${kept[@]}")
}

# Prints the ids of the daemons that serve mount point $1; fails when there are none.
daemons_of() {
    local proc found=1
    for proc in /proc/[0-9]*; do
        [ "$(readlink "$proc/exe" 2>/dev/null)" = "$(readlink -f "$UNIONFS_BIN")" ] || continue
        if tr '\0' '\n' <"$proc/cmdline" 2>/dev/null | grep -qxF -- "$1"; then
            echo "${proc#/proc/}"
            found=0
        fi
    done
    return $found
}

suite_end() {
    local status=$? connection at pid i
    trap - EXIT INT TERM
    set +e
    exec 1>&3
    if [ -n "$CHILD" ]; then
        kill "$CHILD"
        wait "$CHILD"
    fi 2>/dev/null
    # The latest mount first. Aborting the connection frees whoever is stuck in it.
    for ((i = ${#MOUNTS[@]} - 1; i >= 0; i--)); do
        at=${MOUNTS[i]}
        timeout 20 umount "$at" 2>/dev/null && continue
        for connection in "${CONNECTIONS[@]}"; do
            echo 1 2>/dev/null >"/sys/fs/fuse/connections/$connection/abort"
        done
        umount -l "$at" 2>/dev/null
        for pid in $(daemons_of "$at"); do kill "$pid"; done
    done
    if declare -F at_end >/dev/null; then at_end; fi
    umount -l "$WORK" 2>/dev/null
    umount -l "$BASE/store" 2>/dev/null
    if [ "$FAILED" -eq 0 ] && [ "$status" -eq 0 ] && [ -z "${SUITE_KEEP_LOGS:-}" ]; then
        rm -rf --one-file-system "$BASE"
    else
        [ "$FAILED" -gt 0 ] || [ "$status" -eq 0 ] || { FAILED=1; say "  FAILED  stopped with exit status $status"; }
        rm -f "$BASE/store/image" "$BASE/store/plain"
        say "logs: $LOGS"
    fi
    say "$(basename "$0" .sh) $TARGET: $PASSED passed, $FAILED failed, $SECONDS s"
    [ "$FAILED" -eq 0 ] || exit 1
    exit 0
}
