#!/usr/bin/env bash
# dockerd with storage driver fuse-overlayfs, which runs our program under that name, beside the same
# on its vfs driver: dockerd.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
containers_start "${1:-unionfs}" 6G dockerd containerd docker getfattr gcc
# Another docker client may come first in PATH.
DOCKER=(env DOCKER_HOST=unix://"$WORK/run/docker.sock" DOCKER_BUILDKIT=0 "HOME=$WORK/home" "TMPDIR=$WORK/tmp"
    "FACTS_SINCE=$WORK/since" "DRIVER=" "PATH=/usr/bin:/usr/sbin:/bin:/sbin")
. "$HERE/podman-scenario.sh"
ln -s "$BIN" "$WORK/bin/fuse-overlayfs"

debian_base small_base
make_context
# Docker's layers carry no user.* attributes.
sed 's#localhost/##; s#setfattr -x user.other attr#true#' "$HERE/Containerfile" >"$WORK/context/Containerfile"
touch "$WORK/since"

start() {
    PATH=$WORK/bin:$PATH dockerd --storage-driver "$1" --data-root "$WORK/$1" --exec-root "$WORK/run/docker" \
        --pidfile "$WORK/run/docker.pid" -H unix://"$WORK/run/docker.sock" --bridge=none --iptables=false \
        --ip6tables=false --ip-forward=false --ip-masq=false --default-ulimit nofile=20000:20000 \
        >"$LOGS/dockerd.$1.log" 2>&1 &
    DOCKERD=$!
    check "$1: dockerd starts" 60 "${DOCKER[@]}" bash -c '
        until docker info 2>/dev/null | tee /dev/stderr | grep -q "Storage Driver: $1"; do sleep 0.2; done' - "$1" ||
        { tail -n 20 "$LOGS/dockerd.$1.log"; return 1; }
}
stop() {
    kill "$DOCKERD"
    wait "$DOCKERD" || true
    if no_mounts "$WORK/$1"; then pass "$1: no mount and no daemon is left"; else fail "$1: mounts or daemons are left"; fi
}
run() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    check "$DRIVER: $name" "$seconds" "${DOCKER[@]}" "$@"
}
# seen FILE CONTAINER: the tree of a running container, by its process's root; and what it changed.
seen() {
    run "$1.facts" 120 bash -euc 'bash "$1/bin/facts.sh" "/proc/$(docker inspect -f "{{.State.Pid}}" "$2")/root" >"$3"' - \
        "$WORK" "$2" "$OUT/$DRIVER/$1.facts"
    run "$1.diff" 120 bash -euo pipefail -c 'docker diff "$1" | LC_ALL=C sort >"$2"' - "$2" "$OUT/$DRIVER/$1.diff"
}
docker_scenario() {
    mkdir "$OUT/$DRIVER"
    run "import" 120 docker import "$WORK/base.tar" base || return 0
    run "build" 900 docker build --network none --build-arg NODES=yes -t steps "$WORK/context" -f "$WORK/context/Containerfile" || return 0
    run "build from the cache" 60 bash -euo pipefail -c '
        docker build --network none --build-arg NODES=yes -t again "$1" -f "$1/Containerfile" | tee /dev/stderr | grep -c "Using cache"
        test "$(docker inspect -f "{{.Id}}" steps)" = "$(docker inspect -f "{{.Id}}" again)"' - "$WORK/context"
    run "run" 60 docker run -d --network none --user 0 --name first --hostname first steps sh -euc '
        cd /t; echo changed >>link1; rm -r dir2 tree/suid; mkdir dir2; mv keep kept; chmod 4711 sgid; rm names/-dash
        touch /t/ready; exec sleep 1000' || return 0
    run "it works" 30 bash -c 'until docker exec first test -e /t/ready; do sleep 0.2; done'
    seen first first
    run "kill -9" 60 bash -euc 'kill -9 "$(docker inspect -f "{{.State.Pid}}" first)"; test "$(docker wait first)" = 137'
    run "commit" 120 docker commit first committed
    run "save, remove, load" 240 bash -euc 'docker save -o "$TMPDIR/saved.tar" committed; docker rmi -f committed
        docker load -i "$TMPDIR/saved.tar"; rm "$TMPDIR/saved.tar"'
    run "three at once" 60 bash -euc 'for n in 1 2 3; do docker run -d --network none --name "at-once$n" --hostname at-once --user 0 committed sh -euc "
        for i in \$(seq 200); do echo $n >file\$i; mv file\$i \"moved \$i\"; done; rm -r kept; mkdir kept; touch /ready; exec sleep 1000" & done; wait
        for n in 1 2 3; do until docker exec at-once$n test -e /ready; do sleep 0.2; done; done'
    for n in 1 2 3; do seen "at-once$n" "at-once$n"; done
    run "prune" 120 bash -euc 'docker rm -f $(docker ps -aq); docker system prune -af; test -z "$(docker images -aq)"'
}
for DRIVER in fuse-overlayfs vfs; do
    started=$SECONDS
    start "$DRIVER" || continue
    docker_scenario || true
    stop "$DRIVER"
    say "  scenario on $DRIVER: $((SECONDS - started)) s"
done
for file in "$OUT"/vfs/*; do
    same "$(basename "$file")" "$file" "$OUT/fuse-overlayfs/$(basename "$file")"
done
