#!/usr/bin/env bash
# A container made by hand: an image's tarball is unpacked, a union mounted over it, pivot_root, and
# a process started in it. As root, and as an ordinary user in a user namespace: by-hand.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 3G unshare pivot_root newuidmap
ordinary_user

# Root of a user namespace with the user's range of ids.
AS_USER=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --init-groups unshare --map-auto --setuid 0 --setgid 0)
unpack() {
    local tar=(tar --exclude='./dev/*' --numeric-owner --xattrs --xattrs-include='*' -xpf -)
    mkdir "$WORK/image" "$WORK/image.user" "$WORK/changes" "$WORK/changes.user"
    # The user's copy belongs to the ids of his namespace.
    chown 500000:500000 "$WORK/image.user" "$WORK/changes.user"
    "${tar[@]}" -C "$WORK/image" <"$1"
    "${AS_USER[@]}" "${tar[@]}" -C "$WORK/image.user" <"$1"
}
debian_base unpack

cat >"$WORK/bin/container" <<'END'
# Runs in new namespaces: container PROGRAM IMAGE CHANGES SCRIPT
set -eu
program=$1 image=$2 changes=$3
mkdir -p "$changes/upper" "$changes/work" "$changes/root"
"$program" -o "lowerdir=$image,upperdir=$changes/upper,workdir=$changes/work" "$changes/root"
cd "$changes/root"
mkdir -p old
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero urandom; do touch dev/$node; mount --bind /dev/$node dev/$node; done
pivot_root . old
cd /
umount -l /old
rmdir /old
hostname container
exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C sh -euxc "$4"
END

IN_IT='
test "$(hostname)" = container; test $$ = 1; test "$(id -u)" = 0
grep -q " / fuse.unionfs " /proc/mounts; test "$(wc -l </proc/mounts)" -lt 10; test ! -e /old
useradd -m somebody; su somebody -c "echo mine >~/file; ! echo no >/etc/no"
test "$(stat -c %U /home/somebody/file)" = somebody
dpkg --purge --force-all tzdata >/dev/null; test ! -e /usr/share/zoneinfo/Europe/Berlin; test -z "$(dpkg --audit)"
rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash; echo new >/usr/share/doc/bash/new
mv /usr/share/doc/tar /usr/share/doc/moved; chmod 4755 /usr/bin/env; echo changed >>/etc/debian_version'
AGAIN='
test -e /home/somebody/file; test ! -e /usr/share/zoneinfo/Europe/Berlin; test "$(ls /usr/share/doc/bash)" = new
test -e /usr/share/doc/moved/copyright; test -u /usr/bin/env; test "$(tail -n 1 /etc/debian_version)" = changed'

find "$WORK/image" "$WORK/image.user" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/before"
CONTAINER=(unshare --mount --pid --uts --ipc --fork --kill-child sh "$WORK/bin/container" "$BIN")
check "as root" 60 "${CONTAINER[@]}" "$WORK/image" "$WORK/changes" "$IN_IT"
check "as root, again" 60 "${CONTAINER[@]}" "$WORK/image" "$WORK/changes" "$AGAIN"

check "as a user" 60 "${AS_USER[@]}" "${CONTAINER[@]}" "$WORK/image.user" "$WORK/changes.user" "$IN_IT"
check "as a user, again" 60 "${AS_USER[@]}" "${CONTAINER[@]}" "$WORK/image.user" "$WORK/changes.user" "$AGAIN"

find "$WORK/image" "$WORK/image.user" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/after"
same "the images are as they were" "$OUT/before" "$OUT/after"
if no_mounts "$WORK/changes"; then pass "no mount and no daemon is left"; else fail "mounts or daemons are left"; fi
