#!/usr/bin/env bash
# runc and crun with an OCI bundle whose root directory is a union: oci-runtime.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 2G runc crun python3

unpack() {
    mkdir "$WORK/image"
    tar -C "$WORK/image" --numeric-owner --xattrs --xattrs-include='*' -xpf "$1"
}
debian_base unpack
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/before"

# bundle RUNTIME SCRIPT: config.json as the runtime itself makes it, for a process of ours.
bundle() {
    rm -f config.json
    "$1" spec
    python3 - "$2" <<'END'
import json, sys
spec = json.load(open("config.json"))
spec["process"]["terminal"] = False
spec["process"]["args"] = ["/bin/sh", "-exc", sys.argv[1]]
# As engines give them; runc's own are fewer than useradd and dpkg need.
caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"]
for kind in ("bounding", "effective", "permitted"):
    spec["process"]["capabilities"][kind] = caps
spec["root"] = {"path": "rootfs", "readonly": False}
json.dump(spec, open("config.json", "w"))
END
}

for runtime in runc crun; do
    mkdir -p "$WORK/$runtime"/{rootfs,upper,work}
    cd "$WORK/$runtime"
    # crun wants to raise a limit for a cgroup's devices, which a test machine may not allow.
    RUN=("$runtime" --root "$WORK/run/$runtime")
    [ "$runtime" != crun ] || RUN+=(--cgroup-manager=disabled)
    mount_target "$PWD/rootfs" "$WORK/image" "$PWD/upper" "$PWD/work"
    bundle $runtime 'useradd -m somebody; rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash; mv /usr/share/doc/tar /srv/
        echo changed >>/etc/debian_version; dpkg --purge --force-all tzdata; test -z "$(dpkg --audit)"; ln /etc/passwd /etc/linked'
    check "$runtime run" 60 "${RUN[@]}" run first
    check "$runtime: its changes are in the union" 10 sh -euc '
        grep -q somebody rootfs/etc/passwd; test -z "$(ls rootfs/usr/share/doc/bash)"; test rootfs/etc/passwd -ef rootfs/etc/linked
        test -e rootfs/srv/tar/copyright; test ! -e rootfs/usr/share/zoneinfo/Europe'
    bundle $runtime 'echo started >/started; while :; do sleep 1; done'
    check "$runtime create, start, kill -9, delete" 60 bash -euc '
        "$@" create second >/dev/null; "$@" start second
        for tries in $(seq 100); do if [ -s rootfs/started ]; then break; fi; sleep 0.1; done
        "$@" exec second sh -c "echo executed >>/started; test -e /usr/bin/env"
        "$@" kill second KILL
        for tries in $(seq 100); do if "$@" state second | grep -q stopped; then break; fi; sleep 0.1; done
        "$@" delete second
        test "$(cat rootfs/started)" = "$(printf "started\nexecuted")"' - "${RUN[@]}"
    sed -i 's/"readonly": false/"readonly": true/' config.json
    sed -i 's/echo started >/! echo started >/; s/while :.*done//' config.json
    check "$runtime: read-only" 30 "${RUN[@]}" run third
    if unmount_target "$PWD/rootfs"; then pass "$runtime: unmount"; else fail "$runtime: unmount"; fi
    cd "$WORK"
done
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/after"
same "the image is as it was" "$OUT/before" "$OUT/after"
