#!/usr/bin/env bash
# bubblewrap with a union as its root directory, and a union mounted inside of it: bubblewrap.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 2G bwrap newuidmap
ordinary_user
mkdir "$WORK"/{image,upper,work,root}
unpack() { tar -C "$WORK/image" --exclude='./dev/*' --numeric-owner --xattrs --xattrs-include='*' -xpf "$1"; }
debian_base unpack
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/before"
AS_USER=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --init-groups)

mount_target "$WORK/root" "$WORK/image" "$WORK/upper" "$WORK/work"
check "root's sandbox" 60 bwrap --bind "$WORK/root" / --dev /dev --proc /proc --unshare-pid --die-with-parent \
    --cap-add ALL /bin/sh -exc '
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin; useradd -m somebody; rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash
        mv /usr/share/doc/tar /srv/; dpkg --purge --force-all tzdata; test -z "$(dpkg --audit)"; mkdir -m 1777 /srv/open'
check "a user's sandbox" 60 "${AS_USER[@]}" bwrap --bind "$WORK/root" / --dev /dev --proc /proc --unshare-all --die-with-parent /bin/sh -exc '
        test -e /srv/tar/copyright; test -z "$(ls /usr/share/doc/bash)"; ! echo no >/etc/no; ! rm /etc/passwd
        echo mine >/srv/open/file; test -O /srv/open/file; ln /srv/open/file /srv/open/link; mv /srv/open/link /srv/open/moved'
check "a read-only sandbox" 60 "${AS_USER[@]}" bwrap --ro-bind "$WORK/root" / --dev /dev --unshare-all /bin/sh -exc '
        test "$(cat /srv/open/moved)" = mine; ! echo no >/srv/open/file'
if unmount_target "$WORK/root"; then pass "unmount"; else fail "unmount"; fi
find "$WORK/image" -printf '%p %y %#m %U:%G %s %T@ %C@\n' | sort >"$OUT/after"
same "the image is as it was" "$OUT/before" "$OUT/after"

# A user makes the sandbox, and the union in it.
mkdir "$WORK/own"
chown "$USER_ID:$USER_ID" "$WORK/own"
check "a union that is mounted in the sandbox" 60 "${AS_USER[@]}" bwrap --ro-bind / / --dev /dev --dev-bind /dev/fuse /dev/fuse \
    --bind "$WORK/own" "$WORK/own" --unshare-user --uid 0 --gid 0 --unshare-pid --cap-add CAP_SYS_ADMIN --die-with-parent /bin/sh -exc '
        cd "$1"; mkdir lower upper work mnt; echo lower >lower/file; echo gone >lower/gone
        "$2" -o lowerdir=lower,upperdir=upper,workdir=work mnt
        test "$(cat mnt/file)" = lower; echo more >>mnt/file; rm mnt/gone; mkdir mnt/dir; mv mnt/file mnt/dir/
        "$2" umount mnt; test "$(cat lower/file)" = lower; test "$(cat upper/dir/file)" = "$(printf "lower\nmore")"' - "$WORK/own" "$BIN"
# Without the right to mount: an error, soon, and nothing done.
check "where mounting is not allowed" 60 "${AS_USER[@]}" bwrap --ro-bind / / --dev /dev --dev-bind /dev/fuse /dev/fuse \
    --bind "$WORK/own" "$WORK/own" --unshare-all /bin/sh -exc '
        cd "$1"; mkdir lower2 upper2 mnt2; ! "$2" -o lowerdir=lower2,upperdir=upper2 mnt2 2>said; cat said
        test "$(wc -l <said)" = 1; test -z "$(ls -A upper2)"' - "$WORK/own" "$BIN"
if no_mounts "$WORK/own"; then pass "no mount and no daemon is left"; else fail "mounts or daemons are left"; fi
