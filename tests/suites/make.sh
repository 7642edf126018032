#!/usr/bin/env bash
# A C project built with `make -j2`: make.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# SOURCE_DIR is a checkout with a Makefile or configure (zlib, lua). It is built at the same path in a plain
# directory and, with the checkout as a lower, on the target: each file has to be the same, byte for byte, after
# the build, after a remount, after `make clean` and a second build. MAKE_TEST=check is run after it.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 3G git make cc python3

mkdir -p "$WORK"/{empty,lower/project,plain,upper,work,mnt}
git -C "$SOURCE" -c safe.directory='*' archive HEAD | tar -C "$WORK/lower/project" -xf - || die "$SOURCE is no checkout of git"
# In no order with what is built.
find "$WORK/lower" -exec touch -h -d 2015-01-01 {} +
cp -a "$WORK/lower/." "$WORK/plain/"
state "$WORK/lower" >"$LOGS/lower.before"
export SOURCE_DATE_EPOCH=1420070400
PROJECT=$WORK/mnt/project

build() {
    cd "$1" || return 1
    [ ! -x configure ] || ./configure || return 1
    make -j2
}
again() { cd "$1" && make clean && { [ ! -x configure ] || ./configure; } && make -j2; }
# Name, type, mode, size and data; times differ from build to build.
files() { (cd "$1" && find . -type f -exec sha256sum {} + | sort -k 2; find . -printf '%p %y %m %U:%G %l\n' | sort); }
# A log of configure tells process ids and times.
same_files() { diff <(grep -v '\.log$' "$1") <(grep -v '\.log$' "$2"); }
# try NAME SECONDS FUNCTION ARGUMENT...
try() { check "$1" "$2" bash -c "$(declare -f build again same_files); $3 \"\${@}\"" - "${@:4}"; }

mount --bind "$WORK/plain" "$WORK/mnt"
try "built in a plain directory" 600 build "$PROJECT" || exit 1
files "$PROJECT" >"$LOGS/plain"
umount "$WORK/mnt"

mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
try "make -j2" 600 build "$PROJECT" || exit 1
files "$PROJECT" >"$LOGS/built"
say "  $(wc -l <"$LOGS/plain") facts"
try "the products are those of a plain directory" 60 same_files "$LOGS/plain" "$LOGS/built" || true
check "nothing is left to do" 60 make -q -C "$PROJECT" || make -C "$PROJECT" -n | head -n 5
[ -z "${MAKE_TEST:-}" ] || check "make $MAKE_TEST" 600 make -C "$PROJECT" "$MAKE_TEST" || true
if [ "$TARGET" != plain ]; then
    state "$WORK/mnt" >"$LOGS/before"
    if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
    mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    state "$WORK/mnt" >"$LOGS/after"
    check "all is there after a remount" 60 diff "$LOGS/before" "$LOGS/after" || true
fi
try "make clean, make -j2" 600 again "$PROJECT" || true
[ -n "${MAKE_TEST:-}" ] || { files "$PROJECT" >"$LOGS/again"; try "the same products again" 60 same_files "$LOGS/plain" "$LOGS/again" || true; }
if unmount_target "$WORK/mnt"; then pass "unmount at the end"; else fail "unmount at the end"; fi
[ "$TARGET" = plain ] || { state "$WORK/lower" >"$LOGS/lower.after"; check "the lower is unchanged" 60 cmp "$LOGS/lower.before" "$LOGS/lower.after" || true; }
