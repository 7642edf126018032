#!/usr/bin/env bash
# The tests of the two peers, with our program in their place: peers-own.sh DIR [unionfs|fuse-overlayfs]
#
# DIR has checkouts fuse-overlayfs and unionfs-fuse. What is asked of a program's own habits, which ours
# does not share, is in peers-own.exclude with reasons. On the target fuse-overlayfs its own tests alone.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
TARGETS=(unionfs fuse-overlayfs)
third_start "${1:-}" "${2:-}" ram 4G python3 fuse2fs getfattr setfattr setfacl gcc podman fusermount newuidmap

# Under the names that the tests call; what they mount is below $WORK, not /tmp.
OWN=$WORK/own
mkdir -p "$OWN"/{bin,tmp,src,dir} "$WORK"/{etc,home,run}
chmod 1777 "$OWN/tmp" "$OWN/dir"
if [ "$TARGET" = unionfs ]; then program=$UNIONFS_BIN; else program=$(command -v "$FUSE_OVERLAYFS"); fi
cp "$program" "$OWN/bin/program"
ln -s program "$OWN/bin/fuse-overlayfs"
# unionfs-fuse's tests change branches under the mount, and look at once.
printf '#!/bin/sh\nexec %s -o udba=reval "$@"\n' "$OWN/bin/program" >"$OWN/src/unionfs"
ln -s ../bin/program "$OWN/src/unionfsctl"
chmod +x "$OWN/src/unionfs"
cp -r "$SOURCE/fuse-overlayfs/tests" "$OWN/tests"
cp "$SOURCE/unionfs-fuse/test_all.py" "$OWN/"
export PATH=$OWN/bin:$PATH TMPDIR=$OWN/tmp
chmod -R a+rX "$OWN"
# /dev/fuse for its test as an ordinary user, in this namespace only.
USER_ID=4242
{ echo "unionfs-tester:x:$USER_ID:$USER_ID::$WORK/home:/bin/sh"; cat /etc/passwd; } >"$WORK/etc/passwd"
echo "unionfs-tester:500000:65536" | tee "$WORK/etc/subuid" >"$WORK/etc/subgid"
for file in passwd subuid subgid; do
    [ -e "/etc/$file" ] || touch "/etc/$file"
    mount --bind "$WORK/etc/$file" "/etc/$file"
done
mount -t tmpfs -o mode=755,dev tmpfs "$WORK/run"
mknod -m 666 "$WORK/run/fuse" c 10 229
mount --bind "$WORK/run/fuse" /dev/fuse
chown "$USER_ID" "$WORK/home"

# PEERS_CASES="unpriv unionfs-fuse" runs only these.
wanted() { [ -z "${PEERS_CASES:-}" ] || [[ " $PEERS_CASES " == *" $1 "* ]]; }
# A script of fuse-overlayfs stops at its first failure; `=== Test N: WHAT` begins a case.
script() { # NAME COMMAND...
    local name=$1 log=$LOGS/$1.log status=0
    shift
    (cd "$OWN/dir" && timeout -k 10 1200 "$@") >"$log" 2>&1 </dev/null || status=$?
    awk -v name="$name" -v status="$status" -v why="$(grep -av -e '^++* \(cd\|umount\|rm\|cleanup\)' "$log" | tail -n 1 | tr -d '\0')" '
        /^=== / { if (n++) print name "/" last, "ok"; last = n }
        END { print name "/" (n ? last : "all"), status == 0 ? "ok" : "failed exit status " status ": " why }' "$log" >>"$RESULTS"
    # What a failed one left mounted.
    awk -v at="$OWN/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l
    find "$OWN/dir" "$OWN/tmp" -xdev -mindepth 1 -delete 2>/dev/null || true
}
for test in "$OWN"/tests/test-*.sh "$OWN/tests/unlink.sh"; do
    wanted "$(basename "$test" .sh)" || continue
    sed -i "s#/tmp/#$OWN/tmp/#g" "$test"
    script "$(basename "$test" .sh)" bash "$test"
done
# The part of it that asks no registry for images of Fedora, without what it says of the longest name: fuse-overlayfs has shorter
# ones than its layers.
{
    echo 'set -xeuo pipefail; PYTHON=python3; mkdir -p lower upper workdir merged'
    sed -n '/^mkdir merged\/a-directory/,$p' "$OWN/tests/fedora-installs.sh" \
        | sed '/^touch merged\/usr 2/d; /^upper_max_filename_len/,/^touch merged\/\$(printf %\${merged/d' | sed '1i fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=workdir,suid,dev merged'
} >"$OWN/tests/issues.sh"
! wanted issues || script issues bash "$OWN/tests/issues.sh"
# As an ordinary user, with whiteouts as files, which is our default.
chown "$USER_ID" "$OWN/dir"
as_user=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups env "HOME=$WORK/home" FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT=1)
for part in unpriv unpriv-xattr; do
    case $part in
    unpriv) sed '/^# xattr_permissions/,$d' "$OWN/tests/unpriv.sh" >"$OWN/tests/$part" ;;
    *) { echo 'set -ex'; sed '1,/^# xattr_permissions/d' "$OWN/tests/unpriv.sh"; } >"$OWN/tests/$part" ;;
    esac
    ! wanted $part || script $part "${as_user[@]}" sh "$OWN/tests/$part"
done

# unionfs-fuse: each of Python's cases by itself, as the next one would not find its way after a failure.
if [ "$TARGET" = unionfs ] && wanted unionfs-fuse; then
    cd "$OWN"
    for test in $(awk '/^class/ { sub(/\(.*/, "", $2); class = $2 } /^\tdef test_/ { sub(/\(.*/, "", $2); print class "." $2 }' test_all.py); do
        log=$LOGS/unionfs-fuse-$test.log
        # As its authors do: root could do anything.
        if timeout -k 10 60 "${as_user[@]}" python3 test_all.py "$test" >"$log" 2>&1 </dev/null; then
            echo "unionfs-fuse/$test ok"
        else
            echo "unionfs-fuse/$test failed $(grep -a 'Error' "$log" | tail -n 1 | cut -c1-160)"
        fi >>"$RESULTS"
        awk -v at="$OWN/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l
    done
    cd /
fi
judge
