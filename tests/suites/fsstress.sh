#!/usr/bin/env bash
# fsstress, of xfstests: fsstress.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# Four processes do anything to one tree, a tree of lowers to begin with, for FSSTRESS_SECONDS (600);
# FSSTRESS_SEED repeats a run. What is there afterwards must be there after a remount, and the lower
# be unchanged.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 4G python3

[ -x "$SOURCE/ltp/fsstress" ] || (cd "$SOURCE" && make -j2) >"$LOGS/build.log" 2>&1 \
    || die "cannot build it: $(tail -n 3 "$LOGS/build.log")"
SEED=${FSSTRESS_SEED:-$((RANDOM * 32768 + RANDOM))}
TIME=${FSSTRESS_SECONDS:-600}
say "  seed: $SEED (repeat with FSSTRESS_SEED=$SEED)"

mkdir -p "$WORK"/{empty,lower/tree,upper,work,mnt}
timeout 60 "$SOURCE/ltp/fsstress" -d "$WORK/lower/tree" -n 500 -p 4 -s 1 >"$LOGS/lower.log" 2>&1 || die "fsstress: $(tail -n 1 "$LOGS/lower.log")"
state "$WORK/lower" >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"

stress() {
    local end=$((SECONDS + TIME)) seed=$SEED
    while [ $SECONDS -lt $end ]; do
        timeout -k 10 300 "$SOURCE/ltp/fsstress" -d "$WORK/mnt/tree" -n 2000 -p 4 -s $seed || return 1
        seed=$((seed + 1))
    done
}
export SOURCE WORK SEED TIME
check "fsstress, $TIME s" $((TIME + 400)) bash -c "$(declare -f stress); stress" || true
if [ "$TARGET" != plain ]; then
    state "$WORK/mnt" >"$LOGS/before"
    if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
    mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    state "$WORK/mnt" >"$LOGS/after"
    [ -s "$LOGS/before" ] || fail "nothing was listed"
    check "all is there after a remount" 60 diff "$LOGS/before" "$LOGS/after" || true
    state "$WORK/lower" >"$LOGS/lower.after"
    check "the lower is unchanged" 60 cmp "$LOGS/lower.before" "$LOGS/lower.after" || true
fi
if unmount_target "$WORK/mnt"; then pass "unmount at the end"; else fail "unmount at the end"; fi
