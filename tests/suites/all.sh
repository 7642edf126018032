#!/usr/bin/env bash
# Every suite that others wrote, one after the other: all.sh DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# DIR holds checkouts by the names of their projects: unionmount-testsuite, pjdfstest (the one in C), xfstests,
# ltp, fuse-overlayfs, unionfs-fuse, zlib and lua. What comes as a package is installed by apt. It takes hours. A
# suite that cannot run is a failure. SUITES="ltp fsx" runs only these.
set -uo pipefail
DIR=$(realpath "${1:?usage: all.sh DIR [unionfs|plain|overlay|fuse-overlayfs]}")
TARGET=${2:-unionfs}
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

PACKAGES=(acl attr autoconf automake bc dbench fio fuse2fs fuse3 gawk git libacl1-dev libaio-dev libattr1-dev libcap-dev libtool libtool-bin
    perl python3 quota sqlite3 stress-ng uuid-dev xfsdump xfslibs-dev xfsprogs)
DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${PACKAGES[@]}" >/dev/null </dev/null \
    || { echo "CANNOT RUN: apt-get install failed"; exit 1; }

passed=0 failed=0 summary=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# suite NAME COMMAND...: its last line says how much passed and failed.
suite() {
    local name=$1 ok bad status=0 started=$SECONDS
    shift
    [ -z "${SUITES:-}" ] || [[ " $SUITES " == *" ${name%%,*} "* ]] || return 0
    echo "== $name: $*"
    "$@" </dev/null 2>&1 | tee "$log" || status=$?
    read -r ok bad < <(sed -n -E 's/^([a-z-]+ [a-z-]+: )?([0-9]+) passed, ([0-9]+) failed.*/\2 \3/p' "$log" | tail -n 1) || true
    if [ "$status" -ne 0 ] && [ "${bad:-0}" -eq 0 ] || [ -z "${ok:-}" ]; then bad=$((${bad:-0} + 1)); fi
    passed=$((passed + ${ok:-0}))
    failed=$((failed + bad))
    summary+=("$(printf '%-28s %5d passed %4d failed %6d s' "$name" "${ok:-0}" "$bad" $((SECONDS - started)))")
}
suite unionmount ./unionmount.sh "$DIR/unionmount-testsuite" "$TARGET"
suite pjdfstest-c ./pjdfstest-c.sh "$DIR/pjdfstest" "$TARGET"
suite programs ./programs.sh - "$TARGET"
suite stress-ng env STRESS_SECONDS="${STRESS_SECONDS:-600}" ./stress-ng.sh "$TARGET"
suite fsstress ./fsstress.sh "$DIR/xfstests" "$TARGET"
suite make,zlib env MAKE_TEST=check ./make.sh "$DIR/zlib" "$TARGET"
suite make,lua ./make.sh "$DIR/lua" "$TARGET"
suite ltp ./ltp.sh "$DIR/ltp" "$TARGET"
suite xfstests ./xfstests.sh "$DIR/xfstests" "$TARGET"
case $TARGET in unionfs | overlay) suite xfstests-overlay env XFSTESTS_FORM=overlay ./xfstests.sh "$DIR/xfstests" "$TARGET" ;; esac
case $TARGET in
unionfs | fuse-overlayfs) suite peers-own ./peers-own.sh "$DIR" "$TARGET" ;;
esac
# These two know no fuse-overlayfs.
if [ "$TARGET" != fuse-overlayfs ]; then
    suite pjdfstest ./pjdfstest.sh "$TARGET"
    suite fsx env FSX_SECONDS="${FSX_SECONDS:-600}" ./fsx.sh "$TARGET"
fi
# Each way of data, and what has no other target.
if [ "$TARGET" = unionfs ]; then
    for way in none cached; do
        suite fsx,open=$way env FSX_SECONDS="${FSX_SECONDS:-600}" UNIONFS_OPTIONS=open=$way ./fsx.sh
        suite fsstress,open=$way env UNIONFS_OPTIONS=open=$way ./fsstress.sh "$DIR/xfstests"
    done
    suite debian-root ./debian-root.sh
    suite containers ../containers/all.sh
fi
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
