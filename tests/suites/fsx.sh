#!/usr/bin/env bash
# fsx, 100,000 operations a run, on a fresh mount: fsx.sh [unionfs|overlay|plain]
#
# Each seed runs three times: on a new file, on a lower file that is opened with O_TRUNC, and on a
# lower file that is copied up with its data. FSX_SEED repeats a random seed, FSX_OPS the length.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite_start "${1:-unionfs}" ram 2G fsx sha256sum cmp

OPS=${FSX_OPS:-100000}
FIXED=20240229
RANDOM_SEED=${FSX_SEED:-$((RANDOM * 32768 + RANDOM))}
say "  seeds: $FIXED and $RANDOM_SEED (repeat with FSX_SEED=$RANDOM_SEED)"

mkdir -p "$WORK"/{empty,lower/dir,upper,work,mnt}
for seed in $FIXED "$RANDOM_SEED"; do
    for kind in truncated copied; do
        head -c 1048577 /dev/urandom >"$WORK/lower/dir/$kind-$seed"
    done
done
(cd "$WORK/lower" && find . -type f -exec sha256sum {} + | sort) >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"

fsx_run() { # NAME CONFIG SEED
    local name=$1 config=$2 seed=$3
    # The counts of operations that fsx prints at -v would be a log of 100,000 lines; errors show.
    check "fsx $OPS ops, $name, seed $seed" 300 \
        fsx -f "$SUITES/$config" -N "$OPS" -S "$seed" -P "$LOGS" "$WORK/mnt/dir/$name-$seed"
}
for seed in $FIXED "$RANDOM_SEED"; do
    fsx_run new fsx.toml "$seed" || true
    fsx_run truncated fsx.toml "$seed" || true
    fsx_run copied fsx-lower.toml "$seed" || true
    # What lies behind the part that fsx writes is still the lower's.
    if timeout 60 cmp <(tail -c +262145 "$WORK/lower/dir/copied-$seed") \
        <(tail -c +262145 "$WORK/mnt/dir/copied-$seed"); then
        pass "the rest of copied-$seed"
    else
        fail "the rest of copied-$seed differs from the lower"
    fi
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
