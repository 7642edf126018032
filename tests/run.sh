#!/usr/bin/env bash
# The whole test suite: builds everything, runs every cargo test of the workspace and the suites of
# tests/suites and tests/containers on the built binary. Needs root; installs what it needs (tests/setup.sh).
#
# Tests that count requests, drop the kernel's caches or measure memory have the machine for themselves, and those that
# mount outside of a namespace of their own, of which a suite that begins would take a copy along;
# then the suites, each of which has namespaces and layers of its own, run in lanes beside each other.
# What a lane's suites say is printed when the lane has ended, in the order of the lanes.
#
# The last line is `N passed, N failed`; the exit status is 1 when anything failed. A suite that
# cannot run is a failure.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export UNIONFS_BIN=$CARGO_TARGET_DIR/release/unionfs
export CARGO_TERM_COLOR=never
# What is built here is not changed and built again.
export CARGO_INCREMENTAL=0

# Checks that the caller has made already, to be counted in.
passed=${CHECKS_PASSED:-0}
failed=${CHECKS_FAILED:-0}
summary=()
results=$(mktemp -d)
log=$results/log
# Lanes that run, by name: the ids of their process groups.
declare -A lanes=()
at_end() {
    local name
    for name in "${!lanes[@]}"; do kill -- "-${lanes[$name]}" 2>/dev/null && wait "${lanes[$name]}"; done
    rm -rf "$results"
}
trap at_end EXIT

# count NAME PASSED FAILED SECONDS: in a lane it is written down, and counted when the lane has ended.
LANE=
count() {
    if [ -n "$LANE" ]; then
        printf '%s\t%s\t%s\t%s\n' "$@" >>"$results/$LANE.counts"
        echo "   $1: $2 passed, $3 failed, $4 s" >&3
        return
    fi
    passed=$((passed + $2))
    failed=$((failed + $3))
    summary+=("$(printf '%-34s %5d passed %4d failed %5d s' "$@")")
}

# step NAME COMMAND...: one thing that succeeds or fails.
step() {
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    if "$@" </dev/null 3>&-; then
        count "$name" 1 0 $((SECONDS - started))
    else
        count "$name" 0 1 $((SECONDS - started))
    fi
}

# cargo_tests NAME ARGUMENTS...: of the whole workspace always, so that what is built once is what all of them need.
cargo_tests() {
    local name=$1 started=$SECONDS status=0 ok bad ignored
    shift
    echo "== $name"
    cargo test --workspace --locked --no-fail-fast "$@" </dev/null 2>&1 3>&- | tee "$log" || status=$?
    read -r ok bad ignored < <(awk '/^test result: / { ok += $4; bad += $6; ignored += $8 }
        END { print ok + 0, bad + 0, ignored + 0 }' "$log")
    # It did not compile, or a test took its process down: no result line, but a failure.
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ] || [ "$ok" -eq 0 ]; then bad=$((bad + 1)); fi
    count "$name ($ignored ignored)" "$ok" "$bad" $((SECONDS - started))
}

# suite NAME COMMAND...: its last line says how many steps passed and failed.
suite() {
    local name=$1 ok='' bad='' status=0 started=$SECONDS
    shift
    "$@" </dev/null 2>&1 3>&- | tee "$log" || status=$?
    read -r ok bad < <(sed -n -E 's/^[a-z-]+ [a-z]+: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p' "$log" | tail -n 1) || true
    if [ "$status" -ne 0 ] && [ "${bad:-0}" -eq 0 ]; then bad=1; fi
    # Nothing passed and nothing failed: it did not run.
    if [ "${ok:-0}" -eq 0 ] && [ "${bad:-0}" -eq 0 ]; then bad=1; fi
    count "$name" "${ok:-0}" "${bad:-0}" $((SECONDS - started))
}

# run_lanes NAME...: the functions lane_NAME, beside each other.
run_lanes() {
    local name status counted=()
    echo "== lanes: $*"
    for name in "$@"; do
        # A process group each, so that all of a lane can be ended.
        set -m
        {
            trap - EXIT
            LANE=$name
            log=$results/$name.log
            "lane_$name"
        } 3>&1 >"$results/$name.out" 2>&1 </dev/null &
        lanes[$name]=$!
        set +m
    done
    for name in "$@"; do
        status=0
        wait "${lanes[$name]}" || status=$?
        unset "lanes[$name]"
        cat "$results/$name.out"
        [ ! -e "$results/$name.counts" ] || while IFS=$'\t' read -r -a counted; do
            count "${counted[@]}"
        done <"$results/$name.counts"
        [ "$status" -eq 0 ] || count "lane $name ended with $status" 0 1 0
    done
}

[ -n "${UNIONFS_SETUP_DONE:-}" ] || step "packages and tools" tests/setup.sh
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

# cargo builds one profile at a time, but several profiles beside each other.
lane_release() { step "release build" cargo build --release --workspace --locked; }
lane_tests() {
    step "build of the tests" cargo test --workspace --locked --no-run
    step "build with faults" cargo test --workspace --locked --no-run --features unionfs/faults --test core --test panics
    step "build with orders of threads" cargo test --workspace --locked --no-run --features unionfs/shuttle --test core
}
lane_fuzz() { suite "build for fuzzing" tests/suites/fuzz.sh build; }
run_lanes release tests fuzz

cargo_tests "cargo test"
# What touches data, in each way of data. What chooses its own is in the first run.
for way in none cached; do
    export UNIONFS_TEST_OPEN=$way
    cargo_tests "mounted, open=$way" --test mounted -- \
        --skip ways_ --skip acknowledged_cut:: --skip load::sixty --skip udba --skip budgets:: --skip mapped:: --skip stale:: --skip ops_options::
    cargo_tests "random, open=$way" --test core mounted
done
unset UNIONFS_TEST_OPEN
cargo_tests "panics" --features unionfs/faults --test panics
suite "supervise" tests/suites/supervise.sh

lane_core() {
    cargo_tests "crash matrix" --features unionfs/faults --test core faults::
    cargo_tests "orders of threads" --features unionfs/shuttle --test core explorer::
    suite "fuzzing" tests/suites/fuzz.sh
}
lane_posix() {
    suite "pjdfstest" tests/suites/pjdfstest.sh unionfs
    suite "pjdfstest, whiteout=overlay" env UNIONFS_OPTIONS=whiteout=overlay tests/suites/pjdfstest.sh unionfs
    local way
    for way in none cached; do
        suite "pjdfstest, open=$way" env UNIONFS_OPTIONS=open=$way tests/suites/pjdfstest.sh unionfs
        suite "supervise, open=$way" env STALL_NODES=0 UNIONFS_OPTIONS=open=$way tests/suites/supervise.sh 8
    done
    suite "supervise, an ordinary user" env STALL_NODES=0 SUPERVISE_USER=1 tests/suites/supervise.sh 8
    suite "stress-ng" tests/suites/stress-ng.sh unionfs
}
lane_data() {
    suite "fsx" tests/suites/fsx.sh unionfs
    local way
    for way in none cached; do
        suite "fsx, open=$way" env UNIONFS_OPTIONS=open=$way tests/suites/fsx.sh unionfs
    done
}
lane_containers() {
    suite "Debian root" tests/suites/debian-root.sh unionfs
    suite "podman and buildah, rootful" tests/containers/podman.sh rootful
    suite "podman and buildah, rootless" tests/containers/podman.sh rootless
    suite "aufs store of Docker" tests/containers/docker-aufs.sh
    suite "overlay2 store of Docker" tests/containers/docker-overlay.sh
    suite "container by hand" tests/containers/by-hand.sh
    suite "runc and crun" tests/containers/oci-runtime.sh
    suite "bubblewrap" tests/containers/bubblewrap.sh
    suite "containerd's calls" tests/containers/containerd.sh
    suite "kinds of layers, nested unions" tests/containers/nested-layers.sh
}
# Limits of time are for hangs; still, no more lanes than processors.
if [ "$(nproc)" -ge 4 ]; then
    run_lanes core posix data containers
else
    run_lanes core posix
    run_lanes data containers
fi

echo
printf '%s\n' "${summary[@]}"
printf '%-34s %5d s\n' "wall time of the tests" "$SECONDS"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
