#!/usr/bin/env bash
# fsx, 100,000 operations a run, on a fresh mount: fsx.sh [unionfs|overlay|plain]
#
# A fixed and a random seed run on a new file, on a lower file that is copied up with its data, and
# on a lower file that is opened with O_TRUNC. The fixed seed is long on the new file, the random one
# on the copied file; the other runs have a fifth. FSX_SEED repeats a random seed, FSX_OPS sets
# another length.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite_start "${1:-unionfs}" ram 2G fsx sha256sum cmp

OPS=${FSX_OPS:-100000}
FIXED=20240229
RANDOM_SEED=${FSX_SEED:-$((RANDOM * 32768 + RANDOM))}
SEEDS=("$FIXED" "$RANDOM_SEED")
# More than there is time for: files of a megabyte that cost nothing until they are copied up.
if [ -n "${FSX_SECONDS:-}" ]; then
    for _ in $(seq $((FSX_SECONDS / 20 + 1))); do SEEDS+=($((RANDOM * 32768 + RANDOM))); done
fi
say "  seeds: $FIXED and $RANDOM_SEED (repeat with FSX_SEED=$RANDOM_SEED)"

mkdir -p "$WORK"/{empty,lower/dir,upper,work,mnt}
for seed in "${SEEDS[@]}"; do
    for kind in truncated copied; do
        head -c 1048577 /dev/urandom >"$WORK/lower/dir/$kind-$seed"
    done
done
(cd "$WORK/lower" && find . -type f -exec sha256sum {} + | sort) >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"

sed 's/^nomsyncafterwrite = true/nomsyncafterwrite = false/' "$SUITES/fsx.toml" >"$BASE/fsx-msync.toml"
fsx_run() { # NAME OPS CONFIG SEED
    local name=$1 ops=$2 config=$3 seed=$4
    # 900 s for the usual length, which takes some ten where nobody else works.
    check "fsx $ops ops, $name, seed $seed" $((900 + ops / 100)) \
        fsx -f "$config" -N "$ops" -S "$seed" -P "$LOGS" "$WORK/mnt/dir/$name-$seed" || true
}
started=$SECONDS
for seed in "${SEEDS[@]}"; do
    case $seed in
    "$FIXED" | "$RANDOM_SEED") ;;
    *) [ $((SECONDS - started)) -lt "${FSX_SECONDS:-0}" ] || break ;;
    esac
    new=$OPS copied=$((OPS / 5))
    [ "$seed" = $FIXED ] || { new=$((OPS / 5)); copied=$OPS; }
    fsx_run new "$new" "$SUITES/fsx.toml" "$seed"
    fsx_run truncated $((OPS / 5)) "$BASE/fsx-msync.toml" "$seed"
    fsx_run copied "$copied" "$SUITES/fsx-lower.toml" "$seed"
    # What lies behind the part that fsx writes is still the lower's.
    if timeout 60 cmp <(tail -c +262145 "$WORK/lower/dir/copied-$seed") \
        <(tail -c +262145 "$WORK/mnt/dir/copied-$seed"); then
        pass "the rest of copied-$seed"
    else
        fail "the rest of copied-$seed differs from the lower"
    fi
done

(cd "$WORK/mnt" && timeout 300 find . -type f -exec sha256sum {} + | sort) >"$LOGS/mounted"
if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi

if [ "$TARGET" != plain ]; then
    (cd "$WORK/lower" && find . -type f -exec sha256sum {} + | sort) >"$LOGS/lower.after"
    if cmp "$LOGS/lower.before" "$LOGS/lower.after"; then pass "lower unchanged"; else fail "lower changed"; fi
    mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    (cd "$WORK/mnt" && timeout 300 find . -type f -exec sha256sum {} + | sort) >"$LOGS/remounted"
    if cmp "$LOGS/mounted" "$LOGS/remounted"; then pass "same data after a remount"; else fail "data changed by a remount"; fi
    if unmount_target "$WORK/mnt"; then pass "unmount again"; else fail "unmount again"; fi
fi
