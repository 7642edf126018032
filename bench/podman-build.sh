#!/usr/bin/env bash
# Wall time of podman's build of tests/containers/Containerfile on stores of several kinds, in turns:
# podman-build.sh [rootful|rootless] [NAME=PROGRAM]...
#
# Ours, the fuse-overlayfs of PATH, each PROGRAM given, and podman's own overlay driver. Each store gets the base
# image once; then BUILD_ROUNDS (3) times on each, beginning with another one each time, the image is built without a cache and
# removed, in at most BUILD_SECONDS (120). The table is in Markdown. All is on a fresh ext4 in memory, in a
# mount namespace that goes with the script. It takes some five minutes on a quiet machine.
# shellcheck source=tests/containers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tests/containers/lib.sh"
# shellcheck source=tests/containers/podman-scenario.sh
. "$HERE/podman-scenario.sh"
# shellcheck disable=SC2034 # for lib.sh
TARGETS=(rootful rootless)
mode=${1:-rootful}
shift $(($# > 0 ? 1 : 0))
# shellcheck disable=SC2034 # for lib.sh
SUITE_WORDS=("$mode" "$@")
containers_start "$mode" 10G podman crun runc mmdebstrap gcc fuse-overlayfs
[ "$TARGET" = rootful ] || { need newuidmap; ordinary_user; }

ROUNDS=${BUILD_ROUNDS:-3}
STORES=("ours=$BIN" "fuse-overlayfs $(fuse-overlayfs --version 2>/dev/null | awk '/fuse-overlayfs/ { print $NF; exit }')=$(command -v fuse-overlayfs)"
    "$@" "kernel overlay=")
# shellcheck disable=SC2034 # for podman-scenario.sh
PROXIES=()
NODES=no
[ "$TARGET" = rootless ] || NODES=yes

# use NUMBER: podman works on that store from here on. Directories have short names, as podman wants a short path.
use() {
    STORE=${STORES[$1]%%=*}
    engine_config "$TARGET" "s$1" overlay "${STORES[$1]#*=}"
}

debian_base small_base
make_context
# fuse-overlayfs has no names of 255 bytes.
sed -i "s/ echo 9 >[^;]*;//" "$WORK/context/Containerfile"
touch "$WORK/since"
mkdir "$BASE/times"
for number in "${!STORES[@]}"; do
    program=${STORES[$number]#*=}
    # Where every user reaches it.
    if [ -n "$program" ] && [ "$program" != "$BIN" ]; then
        install -m 755 "$(realpath "$program")" "$WORK/bin/program$number"
        STORES[number]=${STORES[$number]%%=*}=$WORK/bin/program$number
    fi
    use "$number"
    step "import of the base" 120 podman import -q "$WORK/base.tar" base || true
done

for ((round = 0; round < ROUNDS; round++)); do
    for ((turn = 0; turn < ${#STORES[@]}; turn++)); do
        number=$(((turn + round) % ${#STORES[@]}))
        use "$number"
        sync
        began=${EPOCHREALTIME/./}
        if step "round $((round + 1)): build" "${BUILD_SECONDS:-120}" podman build --runtime runc --network=none --no-cache --cap-add=MKNOD \
            --build-arg "NODES=$NODES" -t steps -f "$WORK/context/Containerfile" "$WORK/context"; then
            echo $(((${EPOCHREALTIME/./} - began) / 1000)) >>"$BASE/times/$number"
        fi
        step "away with it" 120 bash -c 'podman rmi -f steps && podman image prune -f' >/dev/null || true
    done
done

echo
echo "| store, $TARGET | rounds, s | median, s | to kernel overlay |"
echo "|---|---|---|---|"
median() { sort -n "$1" | awk '{ t[NR] = $1 } END { if (NR) print NR % 2 ? t[(NR + 1) / 2] : (t[NR / 2] + t[NR / 2 + 1]) / 2; else print 0 }'; }
touch "$BASE/times/$((${#STORES[@]} - 1))"
kernel=$(median "$BASE/times/$((${#STORES[@]} - 1))")
for number in "${!STORES[@]}"; do
    if [ ! -s "$BASE/times/$number" ]; then
        echo "| ${STORES[$number]%%=*} | failed | | |"
        continue
    fi
    awk -v name="${STORES[$number]%%=*}" -v median="$(median "$BASE/times/$number")" -v kernel="$kernel" '
        { rounds = rounds (NR > 1 ? ", " : "") sprintf("%.1f", $1 / 1000) }
        END { printf "| %s | %s | %.1f | %s |\n", name, rounds, median / 1000, (kernel > 0 ? sprintf("%.2f", median / kernel) : "") }' "$BASE/times/$number"
done
echo
for number in "${!STORES[@]}"; do
    use "$number"
    "${INSIDE[@]}" podman rmi -fa >/dev/null 2>&1 || true
    end_engine "s$number"
    if no_mounts "$WORK/s$number"; then pass "$STORE: no mount and no daemon is left"; else fail "$STORE: mounts or daemons are left"; fi
done
