#!/usr/bin/env bash
# Every container suite, those that are too long for each run of the tests included. Needs root and
# what tests/setup.sh installs; the rest is installed by setup.sh beside this.
#
# The last line is `N passed, N failed`; the exit status is 1 when anything failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0
lines=()
suite() {
    local ok bad status=0 started=$SECONDS
    "$@" </dev/null 2>&1 | tee "$log" || status=$?
    read -r ok bad < <(sed -n -E 's/^[a-z-]+ [a-z]+: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p' "$log" | tail -n 1) || true
    if [ "$status" -ne 0 ] && [ "${bad:-0}" -eq 0 ]; then bad=1; fi
    passed=$((passed + ${ok:-0}))
    failed=$((failed + ${bad:-0}))
    lines+=("$(printf '%-44s %5d passed %4d failed %5d s' "$*" "${ok:-0}" "${bad:-0}" $((SECONDS - started)))")
}

./setup.sh || { echo "0 passed, 1 failed"; exit 1; }
suite ./podman.sh rootful
suite ./podman.sh rootless
for name in docker-aufs docker-overlay by-hand oci-runtime lxc bubblewrap containerd dockerd nested-layers; do
    suite "./$name.sh"
done
suite ./nested-podman.sh rootful
suite ./nested-podman.sh rootless

echo
printf '%s\n' "${lines[@]}"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
