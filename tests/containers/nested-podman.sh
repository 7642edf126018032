#!/usr/bin/env bash
# podman in a podman container, both with our program: the inner store on a volume; and on the outer
# union itself, where it cannot work and has to say so: nested-podman.sh [rootful|rootless]
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/podman-scenario.sh"
TARGETS=(rootful rootless)
containers_start "${1:-rootful}" 8G podman crun runc getfattr gcc
[ "$TARGET" = rootful ] || { need newuidmap; ordinary_user; }
debian_base small_base
make_context
touch "$WORK/since"
engine_config "$TARGET" outer overlay "$BIN"
STORE=outer

# The outer image: the base, podman, and our program.
cp "$BIN" "$WORK/context/unionfs"
cp "$WORK/base.tar" "$WORK/context/base.tar"
limit=$(ulimit -H -n)
cat >"$WORK/context/containers.conf" <<END
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=$limit:$limit", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
END
cat >"$WORK/context/storage.conf" <<'END'
[storage]
driver = "overlay"
graphroot = "/store"
runroot = "/run/store"
[storage.options.overlay]
mount_program = "/usr/local/bin/unionfs"
END
cat >"$WORK/context/Containerfile.outer" <<'END'
FROM localhost/base
COPY apt /
RUN set -e; apt-get -q update; apt-get -q install -y --no-install-recommends podman crun runc fuse3 </dev/null
COPY unionfs /usr/local/bin/unionfs
COPY storage.conf containers.conf /etc/containers/
COPY base.tar /base.tar
END
step "import" 120 podman import -q "$WORK/base.tar" base
step "image with podman in it" 900 podman build --runtime runc --network=host -q "${PROXIES[@]}" -t outer \
    -f "$WORK/context/Containerfile.outer" "$WORK/context" || exit 1

# in_outer NAME SECONDS SCRIPT
in_outer() {
    step "$1" "$2" podman run --rm --privileged --network=none -v inner:/store -v "$WORK/context:/context:ro" \
        outer bash -euxo pipefail -c "$3"
}
in_outer "the inner store on a volume: import, run, diff, commit" 600 '
    podman info | grep -A3 overlay.mount_program | grep unionfs
    podman import -q /base.tar base
    podman run --name first --network=none base sh -euc "
        grep -q \" / fuse.unionfs \" /proc/mounts; echo changed >/etc/motd; rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash
        mv /usr/share/doc/tar /srv; chmod 4755 /usr/bin/env"
    podman diff first | sort | tee /dev/stderr | grep -x "D /usr/share/doc/tar"
    podman commit -q first second
    podman run --rm --network=none second sh -euc "test \$(cat /etc/motd) = changed; test -e /srv/tar/copyright; test -u /usr/bin/env
        test -z \"\$(ls /usr/share/doc/bash)\""'
nodes=yes
[ "$TARGET" = rootful ] || nodes=no
in_outer "the inner store after a new start: build" 900 "
    podman run --rm --network=none second test -e /srv/tar
    podman build --runtime runc --network=none --cap-add=MKNOD --build-arg NODES=$nodes -q -t steps -f /context/Containerfile /context
    podman run --rm --network=none steps sh -euc 'test -e /t/renamed; test ! -e /usr/share/doc/sed/copyright'
    podman system prune -af >/dev/null"
in_outer "the inner store on the union itself is refused, and says why" 120 '
    mkdir /on-union
    there="podman --root /on-union --storage-opt mount_program=/usr/local/bin/unionfs"
    # Unpacking an image needs no mount, a container does.
    $there import -q /base.tar base
    ! $there run --rm --network=none base true 2>/tmp/said
    grep "names that begin with .wh. cannot be made in it; is it inside another union?" /tmp/said'
step "prune" 60 bash -euc 'podman rm -fa -t 0; podman volume prune -f; podman system prune -af'
end_engine outer
if no_mounts "$WORK/outer"; then pass "no mount and no daemon is left"; else fail "mounts or daemons are left"; fi
