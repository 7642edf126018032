#!/usr/bin/env bash
# The whole test suite: builds the release, runs every cargo test of the workspace and the suites of
# tests/suites and tests/containers on the built binary. Needs root; installs what it needs (tests/setup.sh).
#
# The last line is `N passed, N failed`; the exit status is 1 when anything failed. A suite that
# cannot run is a failure.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export UNIONFS_BIN=$CARGO_TARGET_DIR/release/unionfs
export CARGO_TERM_COLOR=never

# Checks that the caller has made already, to be counted in.
passed=${CHECKS_PASSED:-0}
failed=${CHECKS_FAILED:-0}
summary=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# count NAME PASSED FAILED SECONDS
count() {
    passed=$((passed + $2))
    failed=$((failed + $3))
    summary+=("$(printf '%-34s %5d passed %4d failed %5d s' "$@")")
}

if [ -z "${UNIONFS_SETUP_DONE:-}" ]; then
    echo "== packages and tools"
    started=$SECONDS
    if tests/setup.sh; then
        count "packages and tools" 1 0 $((SECONDS - started))
    else
        count "packages and tools" 0 1 $((SECONDS - started))
    fi
fi
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

echo "== cargo build --release"
started=$SECONDS
if cargo build --release --workspace --locked </dev/null; then
    count "release build" 1 0 $((SECONDS - started))
else
    count "release build" 0 1 $((SECONDS - started))
fi

# cargo_tests NAME ARGUMENTS...
cargo_tests() {
    local name=$1 started=$SECONDS status=0 ok bad ignored
    shift
    echo "== $name"
    cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee "$log" || status=$?
    read -r ok bad ignored < <(awk '/^test result: / { ok += $4; bad += $6; ignored += $8 }
        END { print ok + 0, bad + 0, ignored + 0 }' "$log")
    # It did not compile, or a test took its process down: no result line, but a failure.
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ] || [ "$ok" -eq 0 ]; then bad=$((bad + 1)); fi
    count "$name ($ignored ignored)" "$ok" "$bad" $((SECONDS - started))
}
cargo_tests "cargo test" --workspace
cargo_tests "crash matrix" --features faults --test core faults::
cargo_tests "panics" --features faults --test panics
cargo_tests "orders of threads" --features shuttle --test core explorer::
# What touches data, in each way of data. What chooses its own is in the first run.
for way in none cached; do
    export UNIONFS_TEST_OPEN=$way
    cargo_tests "mounted, open=$way" --test mounted -- \
        --skip ways_ --skip acknowledged_cut:: --skip load::sixty --skip udba --skip budgets:: --skip mapped:: --skip stale:: --skip ops_options::
    cargo_tests "random, open=$way" --test core mounted
done
unset UNIONFS_TEST_OPEN

# suite NAME COMMAND...: its last line says how many steps passed and failed.
suite() {
    local name=$1 ok bad status=0 started=$SECONDS
    shift
    "$@" </dev/null 2>&1 | tee "$log" || status=$?
    read -r ok bad < <(sed -n -E 's/^[a-z-]+ [a-z]+: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p' "$log" | tail -n 1) || true
    if [ "$status" -ne 0 ] && [ "${bad:-0}" -eq 0 ]; then bad=1; fi
    count "$name" "${ok:-0}" "${bad:-0}" $((SECONDS - started))
}
suite "pjdfstest" tests/suites/pjdfstest.sh unionfs
suite "pjdfstest, whiteout=overlay" env UNIONFS_OPTIONS=whiteout=overlay tests/suites/pjdfstest.sh unionfs
suite "fsx" tests/suites/fsx.sh unionfs
for way in none cached; do
    suite "pjdfstest, open=$way" env UNIONFS_OPTIONS=open=$way tests/suites/pjdfstest.sh unionfs
    suite "fsx, open=$way" env UNIONFS_OPTIONS=open=$way tests/suites/fsx.sh unionfs
done
suite "stress-ng" tests/suites/stress-ng.sh unionfs
suite "supervise" tests/suites/supervise.sh
for way in none cached; do
    suite "supervise, open=$way" env STALL_NODES=0 UNIONFS_OPTIONS=open=$way tests/suites/supervise.sh 8
done
suite "supervise, an ordinary user" env STALL_NODES=0 SUPERVISE_USER=1 tests/suites/supervise.sh 8
suite "Debian root" tests/suites/debian-root.sh unionfs
suite "fuzzing" tests/suites/fuzz.sh
suite "podman and buildah, rootful" tests/containers/podman.sh rootful
suite "podman and buildah, rootless" tests/containers/podman.sh rootless
suite "aufs store of Docker" tests/containers/docker-aufs.sh
suite "overlay2 store of Docker" tests/containers/docker-overlay.sh
suite "container by hand" tests/containers/by-hand.sh
suite "runc and crun" tests/containers/oci-runtime.sh
suite "bubblewrap" tests/containers/bubblewrap.sh
suite "containerd's calls" tests/containers/containerd.sh
suite "kinds of layers, nested unions" tests/containers/nested-layers.sh

echo
printf '%s\n' "${summary[@]}"
printf '%-34s %5d s\n' "wall time of the tests" "$SECONDS"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
