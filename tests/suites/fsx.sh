#!/usr/bin/env bash
# fsx, 100,000 operations a run, on a fresh mount: fsx.sh [unionfs|overlay|plain]
#
# On a new file and on lower files that are copied up with their data, for a fixed and for a random
# seed, each 100,000 operations. A part of them, with an msync after each write through a mapping,
# on a lower file that is opened with O_TRUNC. FSX_SEED repeats a random seed, FSX_OPS sets another
# length.
#
# fsx never unmaps what it mapped for reading, so its time grows with the square of the operations.
# It is started anew, with the next seed, after a tenth of them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite_start "${1:-unionfs}" ram 2G fsx sha256sum cmp

OPS=${FSX_OPS:-100000}
PARTS=10
FIXED=20240229
RANDOM_SEED=${FSX_SEED:-$((RANDOM * 32768 + RANDOM))}
say "  seeds: $FIXED and $RANDOM_SEED (repeat with FSX_SEED=$RANDOM_SEED)"

mkdir -p "$WORK"/{empty,lower/dir,upper,work,mnt}
for seed in $FIXED "$RANDOM_SEED"; do
    for ((part = 0; part < PARTS; part++)); do
        head -c 1048577 /dev/urandom >"$WORK/lower/dir/copied-$((seed + part))"
    done
    head -c 1048577 /dev/urandom >"$WORK/lower/dir/truncated-$seed"
done
(cd "$WORK/lower" && find . -type f -exec sha256sum {} + | sort) >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"

sed 's/^nomsyncafterwrite = true/nomsyncafterwrite = false/' "$SUITES/fsx.toml" >"$BASE/fsx-msync.toml"
fsx_run() { # FILE CONFIG SEED
    check "fsx $((OPS / PARTS)) ops, $1, seed $3" 300 \
        fsx -f "$2" -N $((OPS / PARTS)) -S "$3" -P "$LOGS" "$WORK/mnt/dir/$1" || true
}
for first in $FIXED "$RANDOM_SEED"; do
    for ((part = 0; part < PARTS; part++)); do
        seed=$((first + part))
        fsx_run "new-$first" "$SUITES/fsx.toml" "$seed"
        fsx_run "copied-$seed" "$SUITES/fsx-lower.toml" "$seed"
        # What lies behind the part that fsx writes is still the lower's.
        if timeout 60 cmp <(tail -c +262145 "$WORK/lower/dir/copied-$seed") \
            <(tail -c +262145 "$WORK/mnt/dir/copied-$seed"); then
            pass "the rest of copied-$seed"
        else
            fail "the rest of copied-$seed differs from the lower"
        fi
    done
    fsx_run "truncated-$first" "$BASE/fsx-msync.toml" "$first"
done

(cd "$WORK/mnt" && timeout 60 find . -type f -exec sha256sum {} + | sort) >"$LOGS/mounted"
if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi

if [ "$TARGET" != plain ]; then
    (cd "$WORK/lower" && find . -type f -exec sha256sum {} + | sort) >"$LOGS/lower.after"
    if cmp "$LOGS/lower.before" "$LOGS/lower.after"; then pass "lower unchanged"; else fail "lower changed"; fi
    mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    (cd "$WORK/mnt" && timeout 60 find . -type f -exec sha256sum {} + | sort) >"$LOGS/remounted"
    if cmp "$LOGS/mounted" "$LOGS/remounted"; then pass "same data after a remount"; else fail "data changed by a remount"; fi
    if unmount_target "$WORK/mnt"; then pass "unmount again"; else fail "unmount again"; fi
fi
