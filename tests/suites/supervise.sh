#!/usr/bin/env bash
# A mount whose server is killed every two seconds while fio writes and verifies, git clones and a
# program is compiled on it: supervise.sh [SECONDS]
#
# With SUPERVISE_USER=1 all of this is an ordinary user's, who mounts through fusermount3.
#
# SECONDS (20) is how long. At the end it tells the longest time that a client waited for one
# request while servers were killed and replaced, with STALL_NODES (20,000) files known to the kernel; 0: not
# measured.
case ${1:-} in
'' | *[!0-9]*) ;;
*)
    export SUPERVISE_SECONDS=$1
    shift
    ;;
esac
TARGETS=(unionfs)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite_start "${1:-unionfs}" disk 2G fio git cc python3 pgrep make sha256sum cmp diff

LENGTH=${SUPERVISE_SECONDS:-20}
NODES=${STALL_NODES:-20000}
PAUSE=2
export UNIONFS_OPTIONS=supervise,log_file=$LOGS/daemon.log${UNIONFS_OPTIONS:+,$UNIONFS_OPTIONS}
SUPERVISE_USER=${SUPERVISE_USER:-}
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
MNT=$WORK/mnt

# Those that replace servers end when these are gone.
at_end() {
    rm -f "$BASE/killing" "$BASE/going"
    if mountpoint -q "$BASE/own"; then umount -l /dev/fuse "$BASE/own"; fi
}

# The keeper has one child, which serves. Prints its id once there is one other than $1.
server() {
    local pid tries
    for tries in $(seq 600); do
        pid=$(pgrep -P "$KEEPER") && [ "$pid" != "${1:-}" ] && echo "$pid" && return 0
        sleep 0.1
    done
    echo "no server after $tries tries" >&2
    return 1
}

# The keeper is the one whose parent is none of them.
keeper() {
    local all pid
    all=" $(daemons_of "$MNT" | tr '\n' ' ') "
    for pid in $all; do
        [[ $all == *" $(awk '/^PPid:/ { print $2 }' "/proc/$pid/status") "* ]] || echo "$pid"
    done
}

# Kills servers, a pause after each has answered, until the file $1 is gone. Prints how many.
kill_servers() {
    local pid status kills=0
    pid=$(server) || return 1
    while sleep "$PAUSE" && [ -e "$1" ]; do
        kill -9 "$pid" || return 1
        kills=$((kills + 1))
        pid=$(server "$pid") || return 1
        # Answered by the next one: what is killed before it serves, ten times in a row, is given up.
        status=0
        timeout -k 10 120 "${AS[@]}" stat "$MNT/none$kills" >/dev/null 2>&1 || status=$?
        if [ "$status" -ne 1 ]; then
            echo "stat: exit $status"
            return 1
        fi
    done
    echo "$kills"
}

# again COMMAND: until the time is over, once at least. Prints how often.
again() {
    local runs=0
    while [ "$runs" -eq 0 ] || [ "$SECONDS" -lt "$END" ]; do
        "$@" >&2 || return 1
        runs=$((runs + 1))
    done
    echo "$runs"
}

# Each block has a checksum of its own, read back soon after and once more at the end.
run_fio() {
    local left=$((END - SECONDS))
    timeout -k 10 $((LENGTH + 300)) "${AS[@]}" fio --name=verify --directory="$MNT/fio" --size=32m --bs=16k --rw=randrw --numjobs=2 --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --verify_backlog=64 --time_based --runtime=$((left > 2 ? left : 2))
}

run_git() {
    timeout -k 10 300 "${AS[@]}" rm -rf "$MNT/clone"
    timeout -k 10 300 "${AS[@]}" git clone -q --no-hardlinks "$WORK/repository" "$MNT/clone" || return 1
    timeout -k 10 300 "${AS[@]}" git -C "$MNT/clone" fsck --full --strict || return 1
    [ -z "$(timeout -k 10 300 "${AS[@]}" git -C "$MNT/clone" status --porcelain)" ] || return 1
    timeout -k 10 300 "${AS[@]}" diff -r "$WORK/repository/d" "$MNT/clone/d"
}

run_compile() {
    timeout -k 10 300 "${AS[@]}" rm -rf "$MNT/build"
    timeout -k 10 300 "${AS[@]}" cp -r "$MNT/src" "$MNT/build" || return 1
    timeout -k 10 300 "${AS[@]}" make -s -j2 -C "$MNT/build" || return 1
    [ "$(timeout -k 10 60 "${AS[@]}" "$MNT/build/program")" = 820 ]
}

# What is compiled: 40 files, of a lower.
make_sources() {
    local at=$1 n
    mkdir -p "$at"
    for n in $(seq 40); do
        printf '#include <stdio.h>\n#include <stdlib.h>\nint f%d(void) { return %d; }\n' "$n" "$n" >"$at/f$n.c"
    done
    {
        echo '#include <stdio.h>'
        for n in $(seq 40); do echo "int f$n(void);"; done
        echo 'int main(void) { int sum = 0;'
        for n in $(seq 40); do echo "sum += f$n();"; done
        echo 'printf("%d\n", sum); return 0; }'
    } >"$at/main.c"
    printf 'program: %s\n\tcc -o $@ $^\n' "$(cd "$at" && echo *.c | sed 's/\.c/.o/g')" >"$at/Makefile"
}

make_repository() {
    git init -q "$1" && mkdir "$1/d" || return 1
    for n in $(seq 400); do seq "$n" $((n * 9)) >"$1/d/f$n"; done
    git -C "$1" add . && git -C "$1" -c user.name=n -c user.email=e -c gc.auto=0 commit -qm one
}

# stall SECONDS NODES: the longest time, and the tenth longest, that one client waited: for a write to an open file, a look at a new
# name, a file made and removed. He holds so many files, so that the kernel cannot forget them.
stall() {
    timeout -k 10 120 "${AS[@]}" python3 - "$MNT" "$1" "$2" <<'PYTHON'
import os, sys, time

# More than one process may open are held by several, until this one ends.
EACH = 900
mnt = sys.argv[1]
many = os.listdir(mnt + "/many")[: int(sys.argv[3])]
ready, holds = os.pipe()
ends, over = os.pipe()
for first in range(0, len(many), EACH):
    if os.fork() == 0:
        os.close(over)
        held = [os.open(f"{mnt}/many/{name}", os.O_PATH) for name in many[first : first + EACH]]
        os.write(holds, b"x" * len(held))
        os.read(ends, 1)
        os._exit(0)
os.close(holds)
held = 0
while held < len(many):
    more = len(os.read(ready, 4096))
    assert more > 0
    held += more
end = time.monotonic() + float(sys.argv[2])
fd = os.open(mnt + "/stall", os.O_RDWR | os.O_CREAT)
waits, count = [], 0
while time.monotonic() < end:
    name = f"{mnt}/stall.{count}"
    steps = [
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.path.exists(name),
        lambda: os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
        lambda: os.unlink(name),
    ]
    for step in steps:
        before = time.monotonic()
        step()
        waits.append(time.monotonic() - before)
        count += 1
    time.sleep(0.0005)
waits.sort(reverse=True)
print(f"{waits[0] * 1000:.1f} ms, the tenth {waits[9] * 1000:.1f} ms, of {count}")
PYTHON
}

# The longest wait beside $1, which replaces servers until the file that it is given is gone; $2 nodes are known.
stall_beside() {
    local replaced
    touch "$BASE/going"
    PAUSE=0.3
    "$1" "$BASE/going" >"$LOGS/replaced" 2>&1 &
    local pid=$!
    local status=0
    stall 6 "$2" || status=1
    rm "$BASE/going"
    wait "$pid" && [ "$status" -eq 0 ] || return 1
    replaced=$(tail -n 1 "$LOGS/replaced")
    [ "$replaced" -gt 0 ] && echo "$replaced servers replaced"
}

upgrade_servers() {
    local upgrades=0
    while sleep "$PAUSE" && [ -e "$1" ]; do
        timeout -k 10 60 "${AS[@]}" "$UNIONFS_BIN" upgrade "$MNT" || return 1
        upgrades=$((upgrades + 1))
    done
    echo "$upgrades"
}

sums() {
    # shellcheck disable=SC2016 # Its own words.
    timeout 120 "${AS[@]}" sh -c 'cd "$1" && find . -type f -exec sha256sum {} +' sh "$1" | sort
}

mkdir -p "$WORK"/{lower,upper,work,mnt}
if [ -n "$SUPERVISE_USER" ]; then
    need setpriv fusermount3
    AS=(setpriv --reuid=1 --regid=1 --clear-groups env "HOME=$WORK")
    # A device that he may open, in this mount namespace only.
    mkdir "$BASE/own" && mount -t tmpfs own "$BASE/own"
    mknod -m 666 "$BASE/own/fuse" c 10 229
    mount --bind "$BASE/own/fuse" /dev/fuse
    cp "$UNIONFS_BIN" "$BASE/unionfs"
    UNIONFS_BIN=$BASE/unionfs
fi
make_sources "$WORK/lower/src"
make_repository "$WORK/repository" || die "git"
mkdir "$WORK/lower/many"
[ "$NODES" -eq 0 ] || (cd "$WORK/lower/many" && seq "$NODES" | split -l 1 -a 4 -)
[ -z "$SUPERVISE_USER" ] || chown -R 1:1 "$WORK" "$LOGS"
sums "$WORK/lower" >"$LOGS/lower.before"
mount_target "$MNT" "$WORK/lower" "$WORK/upper" "$WORK/work"
KEEPER=$(keeper)
"${AS[@]}" mkdir "$MNT/fio"

END=$((SECONDS + LENGTH))
touch "$BASE/killing"
kill_servers "$BASE/killing" >"$LOGS/kills" 2>&1 &
killer=$!
# shellcheck disable=SC2031 # Each has an end of its own.
for work in fio git compile; do
    (again "run_$work") >"$LOGS/$work.runs" 2>"$LOGS/$work.log" &
    works[$!]=$work
done
for pid in "${!works[@]}"; do
    work=${works[pid]}
    if wait "$pid"; then
        pass "$work, $(cat "$LOGS/$work.runs") times"
    else
        fail "$work:"
        tail -n 25 "$LOGS/$work.log" | sed 's/^/            /'
    fi
done
rm "$BASE/killing"
if wait "$killer" && kills=$(tail -n 1 "$LOGS/kills") && [ "$kills" -gt 0 ]; then
    pass "server killed $kills times"
else
    fail "kills: $(cat "$LOGS/kills")"
fi

# Without files to be known, waits are not measured.
if [ "$NODES" -gt 0 ]; then counts=(1 "$NODES"); else counts=(); fi
for known in "${counts[@]}"; do
    say "  with $known nodes, longest wait undisturbed: $(stall 3 "$known")"
    for way in kill upgrade; do
        if stall_beside "${way}_servers" "$known" >"$LOGS/stall" 2>&1; then
            pass "longest wait at a $way with $known nodes: $(paste -sd, "$LOGS/stall")"
        else
            fail "$way with $known nodes: $(cat "$LOGS/stall" "$LOGS/replaced")"
        fi
    done
done

sums "$MNT" >"$LOGS/mounted"
if unmount_target "$MNT"; then pass "unmount"; else fail "unmount"; fi
sums "$WORK/lower" >"$LOGS/lower.after"
if cmp "$LOGS/lower.before" "$LOGS/lower.after"; then pass "lower unchanged"; else fail "lower changed"; fi
mount_target "$MNT" "$WORK/lower" "$WORK/upper" "$WORK/work"
sums "$MNT" >"$LOGS/remounted"
if cmp "$LOGS/mounted" "$LOGS/remounted"; then pass "same data after a remount"; else fail "data changed by a remount"; fi
if unmount_target "$MNT"; then pass "unmount again"; else fail "unmount again"; fi
