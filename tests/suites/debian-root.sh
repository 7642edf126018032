#!/usr/bin/env bash
# A Debian root in five lowers and an upper, lived in by chroot: debian-root.sh [unionfs|overlay|plain]
#
# The base comes from mmdebstrap and is cached (debian-base.sh).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$SUITES/debian-base.sh"
. "$SUITES/debian-layers.sh"

# In memory where there is plenty; a root and what is installed into it take about 2 GiB.
STORE=disk
if [ "$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)" -ge 10 ]; then STORE=ram; fi
suite_start "${1:-unionfs}" $STORE 8G mmdebstrap chroot setfattr getfattr setfacl setcap sha256sum flock apt-config

M=$WORK/mnt
EXPECTED=$WORK/expected
export EXPECTED TARGET

unpack() { tar -xpf "$1" -C "$WORK/base" --numeric-owner --xattrs --xattrs-include='*'; }
started=$SECONDS
mkdir -p "$WORK"/{base,layers,upper,work,mnt}
debian_base unpack
make_layers "$WORK/base" "$WORK/layers"
LOWERS=$WORK/layers/layer4:$WORK/layers/layer3:$WORK/layers/layer2:$WORK/layers/layer1:$WORK/base
lower_manifests() {
    local layer
    for layer in base layers/layer1 layers/layer2 layers/layer3 layers/layer4; do
        echo "== $layer"
        manifest "$WORK/$layer" all
    done
}
lower_manifests >"$LOGS/lowers.before"
say "  layers ready ($((SECONDS - started)) s)"

mounted_manifest() {
    timeout -k 10 240 bash -c '. "$1"; manifest "$2"' - "$SUITES/debian-layers.sh" "$M" >"$1" 2>"$1.err" || return 1
    [ ! -s "$1.err" ] || { head -n 5 "$1.err"; return 1; }
}
same() { # NAME FILE FILE
    if cmp -s "$2" "$3"; then
        pass "$1 ($(wc -l <"$2") facts)"
    else
        fail "$1: $({ diff "$2" "$3" || true; } | grep -c '^[<>]') lines differ; the first:"
        { diff "$2" "$3" || true; } | sed -n 's/^[<>]/            &/p' | sed -n 1,20p | cut -c1-220
    fi
}
mount_root() {
    if [ "$TARGET" = plain ]; then
        mount_target "$M" "$EXPECTED" "" ""
    else
        mount_target "$M" "$LOWERS" "$WORK/upper" "$WORK/work"
    fi
}
bind_system() {
    timeout 30 mount -t proc proc "$M/proc" && MOUNTS+=("$M/proc")
    timeout 30 mount --rbind --make-rslave /dev "$M/dev" && MOUNTS+=("$M/dev")
    timeout 30 mount -t sysfs sysfs "$M/sys" && MOUNTS+=("$M/sys")
}
unbind_system() {
    local at
    for at in "$M/sys" "$M/dev" "$M/proc"; do
        timeout 30 umount -R "$at" || { fail "umount $at"; return 1; }
        forget_mount "$at"
    done
}
# in_root NAME SECONDS SCRIPT
in_root() {
    check "$1" "$2" chroot "$M" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
        DEBIAN_FRONTEND=noninteractive "${PROXIES[@]}" /bin/sh -exc "$3"
}
PROXIES=()
for name in http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || PROXIES+=("$name=${!name}")
done

started=$SECONDS
mount_root
if mounted_manifest "$LOGS/mount.first"; then
    manifest "$EXPECTED" >"$LOGS/expected"
    same "the merge is the expected tree" "$LOGS/expected" "$LOGS/mount.first"
else
    fail "cannot read the whole mount"
fi
say "  merge compared ($((SECONDS - started)) s)"

bind_system
# How the machine reaches its mirror, into the root: names, certificates, sources, options.
cp -L /etc/resolv.conf "$M/etc/resolv.conf"
cp "$BASE/sources.list" "$M/etc/apt/sources.list"
cp "$BASE/apt.conf" "$M/etc/apt/apt.conf.d/99mmdebstrap"
for file in $(apt_keyrings <"$BASE/sources.list") /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ] && [ ! -e "$M$file" ]; then
        install -D -m 644 "$file" "$M$file"
    fi
done

in_root "apt-get update" 180 'apt-get -o DPkg::Use-Pty=0 update'
in_root "apt-get install" 420 'apt-get -o DPkg::Use-Pty=0 install -y --no-install-recommends gcc libc6-dev git python3'
# Every file of a package in a lower is replaced: a hard link as backup, a rename over it.
in_root "apt-get install --reinstall" 120 'apt-get -o DPkg::Use-Pty=0 install -y --reinstall coreutils bash'
in_root "dpkg --audit" 60 'test -z "$(dpkg --audit)"'
# Complaints about what the layers changed on purpose, and no others: the same as on a plain
# directory, apart from the two packages that were just installed anew.
dpkg_verify() { timeout -k 10 120 chroot "$1" dpkg -V 2>&1 | grep -vE '/doc/(coreutils|bash)(/|$)' | sort; }
dpkg_verify "$EXPECTED" >"$LOGS/verify.expected" || true
dpkg_verify "$M" >"$LOGS/verify.mount" || true
[ -s "$LOGS/verify.expected" ] || fail "dpkg -V sees none of the layers' changes"
same "dpkg -V" "$LOGS/verify.expected" "$LOGS/verify.mount"

in_root "compile and run C" 60 '
    mkdir -p /srv/c && cd /srv/c
    printf "%s\n" "#include <stdio.h>" "int add(int a, int b) { return a + b; }" >add.c
    printf "%s\n" "#include <stdio.h>" "int add(int, int);" "int main(void) { printf(\"sum %d\\n\", add(40, 2)); return 0; }" >main.c
    gcc -O2 -Wall -c add.c main.c && gcc -o sum add.o main.o
    test "$(./sum)" = "sum 42"'
in_root "git: commit, clone, gc, fsck" 120 '
    mkdir -p /srv/repo && cd /srv/repo && git init -q -b trunk .
    git config user.name Tester && git config user.email tester@localhost
    for n in 1 2 3; do
        cp -r /usr/lib/python3.*/ /etc . && echo "$n" >number
        rm -f etc/shadow* etc/gshadow*
        git add -A && git commit -q -m "commit $n" && git mv number "number$n" && git commit -q -m "move $n"
    done
    git clone -q /srv/repo /srv/clone
    git clone -q --no-local /srv/repo /srv/copied
    cd /srv/clone && git fsck --full --strict && test -z "$(git status --porcelain)"
    git gc -q --prune=now && git fsck --full --strict
    test "$(git rev-parse HEAD)" = "$(git -C /srv/repo rev-parse HEAD)"
    test "$(git rev-list --count HEAD)" = 6'
in_root "python: compileall, venv, sqlite" 120 '
    mkdir -p /srv/py && cp -r /usr/lib/python3.*/json /usr/lib/python3.*/asyncio /srv/py/
    python3 -m compileall -q -f /srv/py
    test -n "$(find /srv/py -name "*.pyc")"
    python3 -m venv --without-pip /srv/venv
    test "$(/srv/venv/bin/python -c "import sys; print(sys.prefix)")" = /srv/venv
    python3 - <<END
import sqlite3
for mode in ("delete", "wal", "truncate"):
    db = sqlite3.connect("/srv/%s.db" % mode)
    assert db.execute("pragma journal_mode=" + mode).fetchone()[0] == mode
    db.execute("create table t (k integer primary key, v text)")
    for i in range(20):
        with db:
            db.executemany("insert into t values (?, ?)", ((i * 100 + j, "v%d" % j) for j in range(100)))
    assert db.execute("select count(*), sum(k) from t").fetchone() == (2000, 1999000)
    assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    db.close()
END'
in_root "remove packages" 120 '
    test -e /usr/share/zoneinfo/Europe/Berlin && test -e /usr/bin/git
    apt-get -o DPkg::Use-Pty=0 purge -y tzdata git
    test ! -e /usr/bin/git && test ! -e /usr/share/zoneinfo/Europe && test -z "$(dpkg --audit)"
    ! dpkg -s git 2>/dev/null | grep -q "ok installed"'
in_root "change the lowers' files" 60 '
    useradd -m -s /bin/bash somebody && su somebody -c "echo mine >~/file && test -O ~/file"
    chmod 600 /usr/share/doc/holes && echo more >>/usr/share/doc/holes
    rm -r /usr/share/doc/tar && mkdir /usr/share/doc/tar && echo new >/usr/share/doc/tar/new
    mv /usr/share/doc/perl-base /usr/share/doc/perl-moved
    test "$(ls /usr/share/doc/tar)" = new && test -e /usr/share/doc/perl-moved/copyright
    test ! -e /usr/share/doc/perl-base
    ln /etc/debian_version /etc/debian_version.link && echo changed >>/etc/debian_version
    cmp /etc/debian_version /etc/debian_version.link'

unbind_system
mounted_manifest "$LOGS/mount.used" || fail "cannot read the whole mount"
if unmount_target "$M"; then pass "unmount"; else fail "unmount"; fi
lower_manifests >"$LOGS/lowers.after"
same "the lowers are unchanged" "$LOGS/lowers.before" "$LOGS/lowers.after"

mount_root
mounted_manifest "$LOGS/mount.again" || fail "cannot read the whole mount"
same "everything is there after a remount" "$LOGS/mount.used" "$LOGS/mount.again"
bind_system
in_root "still works after the remount" 120 '
    test "$(/srv/c/sum)" = "sum 42"
    gcc -O2 -Wall -o /srv/c/sum2 /srv/c/add.c /srv/c/main.c && test "$(/srv/c/sum2)" = "sum 42"
    python3 -c "
import sqlite3
for mode in (\"delete\", \"wal\", \"truncate\"):
    db = sqlite3.connect(\"/srv/%s.db\" % mode)
    assert db.execute(\"select count(*), sum(k) from t\").fetchone() == (2000, 1999000)
"
    apt-get -o DPkg::Use-Pty=0 install -y --no-install-recommends git
    git -C /srv/clone fsck --full --strict
    test -z "$(dpkg --audit)" && test "$(ls /usr/share/doc/tar)" = new'
unbind_system
if unmount_target "$M"; then pass "unmount again"; else fail "unmount again"; fi
