#!/usr/bin/env bash
# lxc-start with its root directory on a union; the union mounted before it, and by a hook: lxc.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 2G lxc-start lxc-attach lxc-stop
mkdir "$WORK"/{image,lxc}
unpack() { tar -C "$WORK/image" --exclude='./dev/*' --numeric-owner --xattrs --xattrs-include='*' -xpf "$1"; }
debian_base unpack
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/before"

# container NAME: its directory, and a configuration without a network.
container() {
    mkdir -p "$WORK/lxc/$1"/{rootfs,upper,work}
    cat >"$WORK/lxc/$1/config" <<END
lxc.uts.name = $1
lxc.rootfs.path = dir:$WORK/lxc/$1/rootfs
lxc.net.0.type = empty
lxc.pty.max = 0
lxc.tty.max = 0
lxc.autodev = 1
lxc.mount.auto = proc:mixed
lxc.apparmor.profile = unconfined
lxc.environment = PATH=/usr/sbin:/usr/bin:/sbin:/bin
END
}
lxc() { # VERB NAME SECONDS WORD...
    local verb=$1 name=$2 seconds=$3
    shift 3
    check "lxc-$verb $name${1:+: ${1#--}}" "$seconds" "lxc-$verb" -P "$WORK/lxc" -n "$name" \
        -o "$LOGS/lxc-$verb-$name.log" -l INFO "$@" || tail -n 20 "$LOGS/lxc-$verb-$name.log"
}

container first
mount_target "$WORK/lxc/first/rootfs" "$WORK/image" "$WORK/lxc/first/upper" "$WORK/lxc/first/work"
lxc start first 60 -F -- /bin/sh -exc '
    test "$(hostname)" = first; test $$ = 1; useradd -m somebody; rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash
    mv /usr/share/doc/tar /srv/; dpkg --purge --force-all tzdata; test -z "$(dpkg --audit)"; echo changed >>/etc/debian_version'
check "its changes are in the union" 10 sh -euc 'cd "$1"
    grep -q somebody etc/passwd; test -z "$(ls usr/share/doc/bash)"; test -e srv/tar/copyright; test ! -e usr/share/zoneinfo/Europe' - "$WORK/lxc/first/rootfs"
lxc start first 60 -d -- /bin/sh -c 'echo started >/started; exec sleep 1000'
lxc attach first 60 -- /bin/sh -euxc 'test -s /started; echo attached >>/started; su somebody -c "echo mine >/home/somebody/file"'
lxc stop first 60 -k
check "what it wrote is there" 10 sh -euc 'cd "$1"; test "$(tail -n 1 started)" = attached; test -e home/somebody/file' - "$WORK/lxc/first/rootfs"
if unmount_target "$WORK/lxc/first/rootfs"; then pass "unmount"; else fail "unmount"; fi

# LXC's own overlay backend is the kernel's; a hook mounts ours where LXC looks for the root.
container hooked
cat >>"$WORK/lxc/hooked/config" <<END
lxc.hook.pre-start = $WORK/bin/pre-start
lxc.hook.post-stop = $WORK/bin/post-stop
END
printf '#!/bin/sh\ncd %s && exec %s -o lowerdir=%s,upperdir=upper,workdir=work rootfs\n' "$WORK/lxc/hooked" "$BIN" "$WORK/image" >"$WORK/bin/pre-start"
printf '#!/bin/sh\nexec %s umount %s\n' "$BIN" "$WORK/lxc/hooked/rootfs" >"$WORK/bin/post-stop"
chmod +x "$WORK"/bin/*
lxc start hooked 60 -F -- /bin/sh -exc 'grep " / fuse.unionfs " /proc/mounts; echo hooked >/hooked; rm /etc/motd'
check "the hooks mounted and unmounted" 30 sh -euc 'test -e "$1/upper/hooked"; test -z "$(ls "$1/rootfs")"' - "$WORK/lxc/hooked"
if no_mounts "$WORK/lxc"; then pass "no mount and no daemon is left"; else fail "mounts or daemons are left"; fi
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/after"
same "the image is as it was" "$OUT/before" "$OUT/after"
