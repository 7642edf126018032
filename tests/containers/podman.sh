#!/usr/bin/env bash
# podman and buildah with our program as mount_program: podman.sh [rootful|rootless]
#
# The same scenario (podman-scenario.sh) runs on three stores: ours, and as references podman's own
# drivers. Whatever can be seen of the images and containers has to be the same.
# CONTAINERS_STORES names other stores, the first of which is looked at: ours, fuse-overlayfs,
# overlay (the kernel's), vfs (plain copies). CONTAINERS_PARTS="build prune" does only a part.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/podman-scenario.sh"
TARGETS=(rootful rootless)
containers_start "${1:-rootful}" 12G podman buildah crun mmdebstrap getfattr gcc
[ "$TARGET" = rootful ] || { need newuidmap; ordinary_user; }

debian_base small_base
make_context
# How containers reach the machine's mirror.
PROXIES=()
for name in http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || PROXIES+=(--build-arg "$name=${!name}")
done
touch "$WORK/since"
for STORE in ${CONTAINERS_STORES:-ours vfs}; do
    started=$SECONDS
    case $STORE in
    ours) engine_config "$TARGET" ours overlay "$BIN" ;;
    fuse-overlayfs) engine_config "$TARGET" fuse-overlayfs overlay "${FUSE_OVERLAYFS:-$(command -v fuse-overlayfs)}" ;;
    *) engine_config "$TARGET" "$STORE" "$STORE" ;;
    esac
    # A failure is counted; the rest goes on.
    scenario || true
    say "  scenario on $STORE: $((SECONDS - started)) s"
done
compare_stores
