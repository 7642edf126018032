#!/usr/bin/env bash
# Runs each fuzz target for a while, starting from the kept corpus. Needs cargo-fuzz and a C++ compiler,
# but no nightly Rust: without a sanitizer (there is hardly any unsafe code in what is fuzzed) the stable
# compiler has all that coverage needs.
#
#   tests/suites/fuzz.sh [TARGET...]
#   tests/suites/fuzz.sh build        only that, for a run to come
#
# The target `union` mounts nothing, but needs root: owners, devices, trusted.*.
#
# FUZZ_SECONDS (12) is the time for each target, FUZZ_JOBS how many run at the same time (half of the
# processors). A failing input is kept in fuzz/artifacts.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
exec </dev/null
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
# Coverage counters do not survive link-time optimization, and nobody waits for these programs.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
OPTIONS=(-s none --features libfuzzer)
SECONDS_EACH=${FUZZ_SECONDS:-12}
JOBS=${FUZZ_JOBS:-$((($(nproc) + 1) / 2))}

passed=0
failed=0
step() { # NAME COMMAND...
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "-- $name: ok"
    else
        failed=$((failed + 1))
        echo "-- $name: FAILED"
    fi
}

# What is found goes to a place of its own: the kept corpus is small, and changed on purpose only.
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

build() {
    cargo fuzz build "${OPTIONS[@]}"
}

run() { # TARGET
    local length=512
    mkdir -p "$found/$1"
    # Archives are made of blocks; operations on layers take three bytes each.
    case $1 in
        archive) length=8192 ;;
        union) length=100 ;;
    esac
    # The limit of time of its own is for an input that hangs. In memory nobody waits for a disk.
    TMPDIR=/dev/shm timeout $((SECONDS_EACH + 120)) cargo fuzz run "${OPTIONS[@]}" "$1" "$found/$1" "fuzz/corpus/$1" -- \
        -max_total_time="$SECONDS_EACH" -timeout=10 -max_len=$length -verbosity=0 -print_final_stats=1
}

end() {
    echo "fuzz unionfs: $passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}

step "build" build
[ "${1:-}" != build ] || end
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
# A list that cannot be had is no success.
step "list of targets" test ${#targets[@]} -gt 0
# What a run says is printed whole, in the order of the targets.
said() { # TARGET
    cat "$found/$1.log"
    [ "$(cat "$found/$1.status")" = 0 ]
}
for target in "${targets[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || true; done
    {
        run "$target"
        echo $? >"$found/$target.status"
    } >"$found/$target.log" 2>&1 &
done
wait
for target in "${targets[@]}"; do
    step "$target, $SECONDS_EACH s" said "$target"
done
end
