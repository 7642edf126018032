# Shared by the container suites: what tests/suites/lib.sh gives, in a PID namespace too, so that
# whatever an engine starts ends with the suite; and podman, buildah and a user for them.
#
# In the mount namespace of the suite /etc/passwd, /etc/subuid and the like, /dev/fuse,
# /sys/fs/cgroup and /dev/shm are its own: nothing of the machine is changed.
# shellcheck shell=bash

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../suites/lib.sh"
. "$SUITES/debian-base.sh"

# A word for `timeout`'s commands: the programs in sbin, and nothing that a user may have set.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
NAMESPACES=(--pid --fork --kill-child --mount-proc)

# The user of rootless engines, in files of our own.
USER_NAME=unionfs-tester
USER_ID=4242

# containers_start TARGET SIZE TOOLS...: as suite_start; then $BIN is our program where every user
# can reach it.
containers_start() {
    local target=$1 size=$2 store=disk
    shift 2
    [ "$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)" -lt 12 ] || store=ram
    suite_start "$target" $store "$size" "$@"
    # Containers want mounts that they can share among themselves; the machine has no part in them.
    mount --make-rshared /
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mkdir "$WORK"/{bin,etc,home,run,tmp} "$BASE/cgroup" "$LOGS/out"
    OUT=$LOGS/out
    mount -t tmpfs -o mode=755,dev tmpfs "$WORK/run"
    # The containers' cgroups are below one of ours.
    mount -t cgroup2 cgroup2 "$BASE/cgroup" || die "no cgroup2"
    CGROUP=$BASE/cgroup/$(basename "$BASE")
    INIT_BEFORE=$([ ! -d "$BASE/cgroup/init" ] || echo yes)
    mkdir "$CGROUP"
    mount --bind "$CGROUP" /sys/fs/cgroup
    cp "$UNIONFS_BIN" "$WORK/bin/unionfs"
    cp "$HERE/facts.sh" "$WORK/bin/"
    BIN=$WORK/bin/unionfs
    UNIONFS_BIN=$BIN
    chmod 1777 "$WORK/tmp"
    cd "$WORK"
}

# Called by suite_end.
at_end() {
    [ -d "${CGROUP:-}" ] || return 0
    echo 1 >"$CGROUP/cgroup.kill"
    for _ in $(seq 50); do
        find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null
        [ -d "$CGROUP" ] || break
        sleep 0.1
    done
    # podman inside of a container sees the machine's cgroups, and makes this one for itself there.
    [ -n "$INIT_BEFORE" ] || rmdir "$BASE/cgroup/init" 2>/dev/null
    umount -l "$BASE/cgroup"
}

# ordinary_user: from here on $USER_NAME exists, with ranges of ids, and may use /dev/fuse.
ordinary_user() {
    local file
    { echo "$USER_NAME:x:$USER_ID:$USER_ID::$WORK/home:/bin/sh"; cat /etc/passwd; } >"$WORK/etc/passwd"
    { echo "$USER_NAME:x:$USER_ID:"; cat /etc/group; } >"$WORK/etc/group"
    echo "$USER_NAME:500000:65536" | tee "$WORK/etc/subuid" >"$WORK/etc/subgid"
    for file in passwd group subuid subgid; do
        [ -e "/etc/$file" ] || touch "/etc/$file"
        mount --bind "$WORK/etc/$file" "/etc/$file"
    done
    mknod -m 666 "$WORK/run/fuse" c 10 229
    mount --bind "$WORK/run/fuse" /dev/fuse
    chown -R "$USER_ID:$USER_ID" "$WORK/home" "$OUT"
}

# engine_config rootful|rootless NAME DRIVER [PROGRAM]: podman and buildah use a store of their own
# from here on, $WORK/NAME/store, with that driver. AS is the beginning of every command of the
# engine's user, INSIDE that of a command which sees the engine's mounts.
# shellcheck disable=SC2034 # They are used elsewhere.
engine_config() {
    local mode=$1 dir=$WORK/$2 driver=$3 program='' limit
    limit=$(ulimit -H -n)
    [ -z "${4:-}" ] || program="mount_program = \"$4\""
    mkdir -p "$dir/store" "$WORK/run/$2"
    cat >"$dir/storage.conf" <<END
[storage]
driver = "$driver"
graphroot = "$dir/store"
rootless_storage_path = "$dir/store"
runroot = "$WORK/run/$2"
[storage.options.overlay]
$program
END
    # No cgroups and no rise of limits: a test machine may allow neither.
    cat >"$dir/containers.conf" <<END
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=$limit:$limit", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
tmp_dir = "$WORK/run/$2/libpod"
END
    AS=(env "CONTAINERS_STORAGE_CONF=$dir/storage.conf" "CONTAINERS_CONF=$dir/containers.conf"
        "XDG_RUNTIME_DIR=$WORK/run/$2" "HOME=$WORK/home" "TMPDIR=$WORK/tmp" "FACTS_SINCE=$WORK/since")
    INSIDE=("${AS[@]}")
    if [ "$mode" = rootless ]; then
        chown -R "$USER_ID:$USER_ID" "$dir" "$WORK/run/$2"
        AS=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --init-groups "${AS[@]}" "USER=$USER_NAME")
        INSIDE=("${AS[@]}" podman unshare)
    fi
}

# end_engine NAME: what podman keeps beyond its containers: the process that holds the user's
# namespaces, and its directory mounted on itself.
end_engine() {
    local pid
    for pid in $(cat "$WORK/run/$1/libpod/tmp/pause.pid" "$WORK/run/$1/libpod/pause.pid" 2>/dev/null); do
        kill -9 "$pid" || true
    done
    umount "$WORK/$1/store/overlay" "$WORK/$1/store/vfs" 2>/dev/null || true
}

# same NAME FILE FILE: what was expected, and what is there.
same() {
    if [ ! -s "$2" ] && [ -z "${MAY_BE_EMPTY:-}" ]; then
        fail "$1: nothing to compare with in $2"
    elif cmp -s "$2" "$3"; then
        pass "$1 ($(wc -l <"$2") facts)"
    else
        fail "$1: $({ diff "$2" "$3" || true; } | grep -c '^[<>]') lines differ; the first:"
        { diff "$2" "$3" || true; } | sed -n 's/^[<>]/            &/p' | sed -n 1,20p | cut -c1-220
    fi
}

# no_mounts DIR: fails while something of DIR is mounted, or a daemon of ours runs.
no_mounts() {
    local proc tries
    for tries in $(seq 100); do
        if ! grep -q " $1/" /proc/self/mountinfo && ! our_daemons; then return 0; fi
        sleep 0.1
    done
    grep " $1/" /proc/self/mountinfo
    our_daemons
    say "still there after $tries tries"
    return 1
}

our_daemons() {
    local proc found=1
    for proc in /proc/[0-9]*; do
        [ "$(readlink "$proc/exe" 2>/dev/null)" = "$BIN" ] || continue
        tr '\0' ' ' <"$proc/cmdline" 2>/dev/null
        found=0
    done
    return $found
}
