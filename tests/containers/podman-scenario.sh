# The scenario of podman.sh: what is done on each store, and what is kept of it in $OUT/STORE.
# shellcheck shell=bash

# What differs from run to run: times in logs and caches.
export FACTS_VARYING='\./(var/log/.*|var/cache/ldconfig/aux-cache|var/lib/apt/.*|var/cache/apt/.*\.bin|etc/.*-|run/.*|t/loop)'

# step NAME SECONDS COMMAND...: as the engine's user.
step() {
    local name=$1 seconds=$2
    shift 2
    check "$STORE: $name" "$seconds" "${AS[@]}" "$@"
}

# keep FILE SECONDS COMMAND...: the output of a command that sees the engine's mounts, to be compared
# with that on the other stores.
keep() {
    local file=$OUT/$STORE/$1 seconds=$2
    shift 2
    check "$STORE: $(basename "$file")" "$seconds" "${INSIDE[@]}" \
        bash -euo pipefail -c 'file=$1; shift; "$@" >"$file"' - "$file" "$@"
}

# facts_of FILE container|image NAME
facts_of() {
    local mount=(podman mount) unmount=(podman umount)
    [ "$2" = container ] || { mount=(podman image mount); unmount=(podman image umount); }
    keep "$1.facts" 120 bash -euc '
        at=$('"${mount[*]}"' "$1")
        bash "$2/bin/facts.sh" "$at"
        '"${unmount[*]}"' "$1" >&2' - "$3" "$WORK"
}

# changes_of FILE CONTAINER: what podman says that it changed.
changes_of() {
    keep "$1.diff" 120 bash -euo pipefail -c 'podman diff "$1" | LC_ALL=C sort' - "$2"
}

# layers_of FILE IMAGE: the entries of every layer's tarball, without times; names of one file may
# be in any order.
layers_of() {
    keep "$1.layers" 240 bash -euo pipefail -c '
        rm -rf "$TMPDIR/layers"
        podman save -q --format docker-dir -o "$TMPDIR/layers" "$1" >&2
        cd "$TMPDIR/layers"
        first=yes
        for layer in $(grep -o "sha256:[0-9a-f]*" manifest.json | cut -d: -f2); do
            # The first is the configuration.
            if [ -n "$first" ]; then first=; continue; fi
            echo "layer"
            tar --numeric-owner --full-time -tvf "$layer" \
                | sed -E "s/ [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+ / /; s/ link to .*/ linked/" | sort -k 4
        done
        rm -rf "$TMPDIR/layers"' - "$2"
}

# small_base TARBALL: the base without what only costs time: each step of a build is walked through, and
# on vfs copied.
small_base() {
    tar --delete --wildcards -f - './usr/share/locale/?*' './usr/share/man/?*' './usr/share/info/?*' \
        './usr/share/zoneinfo/posix/?*' './usr/share/zoneinfo/right/?*' './usr/lib/*/gconv/?*' \
        './usr/share/perl/?*' './usr/lib/*/perl/?*' <"$1" >"$WORK/base.tar"
}

make_context() {
    local in=$WORK/context file
    mkdir -p "$in/context/more" "$in/tar"
    echo context >"$in/context/file"
    ln -s file "$in/context/soft"
    echo more >"$in/context/more/file"
    chmod 750 "$in/context/more"
    (
        cd "$in/tar" || exit 1
        echo tarred >one
        ln one two
        cp /bin/true caps
        setcap cap_net_raw+ep caps
        setfattr -n user.tarred -v yes one
        chown 11:12 one
        mkfifo fifo
        tar --xattrs --xattrs-include='*' -cf "$in/context.tar" .
    )
    rm -r "$in/tar"
    cp "$HERE/Containerfile" "$in/Containerfile"
    cat >"$in/hello.c" <<'END'
#include <stdio.h>
int main(int argc, char **argv) {
    FILE *out = fopen("/written", "w");
    if (!out || fputs("from scratch\n", out) < 0 || fclose(out)) return 1;
    return puts("works") < 0;
}
END
    gcc -static -O1 -o "$in/hello" "$in/hello.c" || die "gcc -static (libc6-dev)"
    printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' >"$in/Containerfile.scratch"
    cat >"$in/Containerfile.apt" <<'END'
FROM localhost/steps
USER 0
COPY apt /
RUN set -e; apt-get -q update; apt-get -q install -y --no-install-recommends acl file less </dev/null
RUN set -e; apt-get -q purge -y acl tzdata; test -z "$(dpkg --audit)"; apt-get -q install -y --reinstall coreutils
RUN set -e; rm -r /var/lib/apt/lists /var/cache/apt; mkdir -p /var/lib/apt/lists /var/cache/apt/archives/partial
END
    # How the machine reaches its mirror: sources, options, keys, certificates.
    install -D -m 644 "$BASE/sources.list" "$in/apt/etc/apt/sources.list"
    install -D -m 644 "$BASE/apt.conf" "$in/apt/etc/apt/apt.conf.d/99mmdebstrap"
    for file in $(apt_keyrings <"$BASE/sources.list") /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || install -D -m 644 "$file" "$in/apt$file"
    done
    chmod -R a+rX "$in"
}

scenario() {
    mkdir -p "$OUT/$STORE"
    chmod 777 "$OUT/$STORE"
    say "-- $STORE"
    step "import the base" 120 podman import -q "$WORK/base.tar" base || return 0
    facts_of base image base
    local part
    for part in ${CONTAINERS_PARTS:-scratch run build apt commit archives parallel volumes killed buildah prune}; do
        "scenario_$part" || return 0
    done
}

scenario_scratch() {
    step "image from scratch" 60 podman build --runtime runc -q -t scratch -f "$WORK/context/Containerfile.scratch" "$WORK/context"
    keep scratch.output 60 podman run --name scratch --network=none scratch
    facts_of scratch container scratch
    changes_of scratch scratch
}

scenario_run() {
    step "run" 60 podman run --name run --network=none base sh -euc '
        test "$(id -u)" = 0
        echo changed >/etc/motd
        rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash; echo new >/usr/share/doc/bash/new
        mv /usr/share/doc/tar /usr/share/doc/tar-moved
        useradd -m somebody; su somebody -c "echo mine >~/file; ! echo no >/etc/no 2>/dev/null"
        ln /etc/debian_version /etc/debian_version.link; echo changed >>/etc/debian_version
        cmp /etc/debian_version /etc/debian_version.link
        mkdir -m 2775 /srv/group; chgrp 5 /srv/group; mkdir /srv/group/inherits
        chmod 4755 /usr/bin/env; echo x >/tmp/t; rm /tmp/t'
    facts_of run container run
    changes_of run run
}

scenario_build() {
    local nodes=yes
    [ "$TARGET" = rootful ] || nodes=no
    # crun wants to raise a limit for a cgroup's devices, which a test machine may not allow.
    BUILD=(podman build --runtime runc --network=none --cap-add=MKNOD --build-arg "NODES=$nodes" -t steps
        -f "$WORK/context/Containerfile" "$WORK/context")
    step "build" 900 "${BUILD[@]}" || return 1
    facts_of build image steps
    layers_of build steps
    keep build.history 60 podman history --no-trunc --format '{{.CreatedBy}}' steps
    # All of it from the cache, and the same image.
    check "$STORE: build from the cache" 60 "${AS[@]}" bash -euo pipefail -c '
        before=$(podman image inspect -f "{{.Id}}" steps)
        "$@" >"$TMPDIR/log"
        ! grep -E "^STEP .*: RUN" -A 1 "$TMPDIR/log" | grep -vE "^STEP|^--> Using cache|^--$"
        test "$(podman image inspect -f "{{.Id}}" steps)" = "$before"' - "${BUILD[@]}"
}

# apt-get and dpkg in a build; the machine's way to its mirror is put in first.
scenario_apt() {
    step "apt-get and dpkg" 300 podman build --runtime runc --network=host -q "${PROXIES[@]}" -t apt \
        -f "$WORK/context/Containerfile.apt" "$WORK/context" || return 0
    facts_of apt image apt
    step "dpkg -V" 60 podman run --rm --network=none --user=0 apt dpkg -V coreutils less file
}

# A container's changes become an image; a container of that image shows the same.
scenario_commit() {
    step "run on many layers" 60 podman run --name changed --network=none --user=0 steps sh -euc '
        cd /t; echo changed >>link1; rm -r dir2 tree/suid; mkdir dir2; mv keep kept; chmod 4711 sgid
        if [ -c null ]; then echo x >null; fi
        echo x >names/new; rm names/-dash names/"$(printf "n%.0s" $(seq 250))"; ln renamed renamed3
        setcap cap_net_admin+ep caps; chown 9:9 /usr/share/doc/perl-base; touch -d 2001-01-01 sticky'
    facts_of changed container changed
    changes_of changed changed
    step "commit" 120 podman commit -q changed committed
    facts_of committed image committed
    layers_of committed committed
    step "run the commit" 60 podman run --rm --network=none committed sh -euc '
        test "$(tail -n 1 link1)" = changed; test ! -e keep; test -z "$(ls dir2)"; test -u sgid'
}

# export; save, remove, load.
scenario_archives() {
    keep export.list 120 bash -euo pipefail -c '
        podman export -o "$TMPDIR/export.tar" changed
        tar --numeric-owner -tvf "$TMPDIR/export.tar" \
            | sed -E "s/ [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]+ / /; s/ link to .*/ linked/" | sort -k 4
        mkdir "$TMPDIR/export"
        tar -C "$TMPDIR/export" --exclude="dev/*" --exclude=t/null --exclude=t/disk --numeric-owner -xpf "$TMPDIR/export.tar"
        cd "$TMPDIR/export"
        find . -type f ! -path "./etc/hostname" -print0 | sort -z | xargs -0 sha256sum
        rm -rf "$TMPDIR/export" "$TMPDIR/export.tar"'
    local format
    for format in docker-archive oci-archive; do
        step "save, remove, load: $format" 240 bash -euo pipefail -c '
            podman save -q --format "$1" -o "$TMPDIR/saved.tar" committed
            podman rmi -f committed >&2
            podman load -q -i "$TMPDIR/saved.tar"
            rm "$TMPDIR/saved.tar"
            podman image exists committed' - $format
        facts_of "loaded-$format" image committed
    done
    # vfs has only one directory, which it lets anyone write.
    [ "$STORE" != vfs ] || return 0
    check "$STORE: an image is mounted read-only" 60 "${INSIDE[@]}" bash -euc '
        at=$(podman image mount steps)
        test -e "$at/t/renamed"
        ! touch "$at/t/renamed" "$at/new" 2>"$TMPDIR/said"
        test ! -e "$at/new" && cat "$TMPDIR/said"
        test "$(grep -c "Read-only file system" "$TMPDIR/said")" = 2
        podman image umount steps'
}

# Three containers at once on one image, each with changes of its own.
scenario_parallel() {
    check "$STORE: three containers at once" 120 "${AS[@]}" bash -euc '
        for n in 1 2 3; do
            podman run --name "parallel$n" --network=none --user=0 steps sh -euc "
                cd /t; for i in \$(seq 300); do echo $n >file\$i; echo $n >>large; mv file\$i \"moved \$i\"; done
                echo $n >new; rm -r keep; mkdir keep; echo $n >keep/$n; chown -R $n:$n tree; rm \"moved $n\"
                ln large linked$n; rm -r /usr/share/doc/perl*" &
            pids="${pids:-} $!"
        done
        for pid in $pids; do wait "$pid"; done'
    for n in 1 2 3; do
        facts_of "parallel$n" container "parallel$n"
        changes_of "parallel$n" "parallel$n"
    done
    facts_of "after-parallel" image steps
}

# Named volumes (filled from the image), directories of the host, overlays over them, tmpfs, another
# container's volumes, a union as the host's directory.
scenario_volumes() {
    mkdir -p "$WORK/host.$STORE/sub"
    echo host >"$WORK/host.$STORE/sub/file"
    [ "$TARGET" = rootful ] || chown -R "$USER_ID:$USER_ID" "$WORK/host.$STORE"
    step "volumes" 120 podman run --name volumes --network=none --user=0 -v filled:/t/keep -v empty:/volume \
        -v "$WORK/host.$STORE:/host" --mount type=tmpfs,destination=/tmpfs steps sh -euc '
            test -u /t/keep/suid; echo new >/t/keep/new; rm -r /t/keep/tar; mv /t/keep/link3 /volume/moved
            echo changed >>/host/sub/file; ln /host/sub/file /host/link; cp -a /t/names /tmpfs/
            mv /tmpfs/names /volume/names; echo hidden >/t/visible'
    step "the volumes of another container" 60 podman run --rm --network=none --user=0 --volumes-from volumes base sh -euc '
        test "$(cat /t/keep/new)" = new; test ! -e /t/visible; test -e /volume/names; rm -r /volume/names/*'
    step "an overlay over a directory of the host" 60 podman run --name over --network=none --user=0 \
        -v "$WORK/host.$STORE:/host:O" steps sh -euc '
            test -e /host/link; echo inside >/host/sub/new; rm /host/sub/file; mv /host/sub /host/moved
            test "$(ls /host/moved)" = new; ls -lR /host'
    check "$STORE: the host's directory is as it was" 10 bash -euc '
        test "$(cat "$1/link")" = "$(printf "host\nchanged\n")"; test "$(ls "$1/sub")" = file' - "$WORK/host.$STORE"
    facts_of volumes container volumes
    changes_of volumes volumes
    keep filled.facts 60 bash -euc '
        bash "$1/bin/facts.sh" "$(podman volume inspect -f "{{.Mountpoint}}" filled)"
        bash "$1/bin/facts.sh" "$(podman volume inspect -f "{{.Mountpoint}}" empty)"' - "$WORK"
}

# kill -9 of a container at work; what it wrote is there, and it starts again.
scenario_killed() {
    step "a container at work" 60 podman run -d --name killed --network=none --user=0 steps sh -euc '
        if [ -e /t/before ]; then test "$(cat /t/before)" = before; echo after >/t/after; exit 0; fi
        echo before >/t/before; rm -r /t/keep; mv /t/dir2 /t/dir3; touch /t/ready
        mkdir -p /t/loop; while :; do echo x >/t/loop/a; mv /t/loop/a /t/loop/b; cp /t/large /t/loop/c; rm /t/loop/c; done' || return 0
    check "$STORE: kill -9" 60 "${INSIDE[@]}" bash -euc '
        at=$(podman mount killed)
        for tries in $(seq 300); do if [ -e "$at/t/ready" ]; then break; fi; sleep 0.1; done
        kill -9 "$(podman inspect -f "{{.State.Pid}}" killed)"
        test "$(podman wait killed)" = 137
        test "$(cat "$at/t/before")" = before; test ! -e "$at/t/keep"; test -d "$at/t/dir3"
        rm -r "$at/t/loop"; podman umount killed'
    step "it starts again" 60 podman start -a killed
    facts_of killed container killed
    changes_of killed killed
    [ "$STORE" = ours ] || return 0
    # Beyond what an engine expects: the daemon of one container dies. Others go on, and so does podman.
    step "a container whose daemon will die" 60 podman run -d --name lost --network=none base sleep 1000
    check "$STORE: kill -9 of a container's daemon" 60 "${INSIDE[@]}" bash -euc '
        at=$(podman mount lost)
        pid=$(pgrep -f "^$1 .*$at\$")
        kill -9 "$pid"
        ! ls "$at" 2>/dev/null
        podman rm -f -t 0 lost
        podman run --rm --network=none base test -e /etc/motd' - "$BIN"
}

# buildah: a container by hand, without a Containerfile, then a build of its own.
scenario_buildah() {
    check "$STORE: buildah from, run, copy, mount, commit" 240 "${INSIDE[@]}" bash -euc '
        c=$(buildah from --name work steps)
        buildah run --runtime runc --network none --user 0 "$c" -- sh -euc "rm -r /t/keep /t/names; mkdir /t/keep; echo run >/t/keep/run"
        buildah copy --chown 5:6 "$c" "$1/context" /t/copied
        at=$(buildah mount "$c")
        echo by hand >"$at/t/by-hand"; mv "$at/t/tree" "$at/t/tree2"; ln "$at/t/renamed" "$at/t/copied/linked"
        buildah umount "$c"
        buildah config --env A=b --user 1 --cmd /bin/true "$c"
        buildah commit -q "$c" by-buildah
        buildah rm "$c"' - "$WORK/context"
    facts_of by-buildah image by-buildah
    layers_of by-buildah by-buildah
    check "$STORE: buildah bud" 240 "${AS[@]}" bash -euc '
        printf "%s\n" "FROM by-buildah" "USER 0" "COPY context /t/again" "RUN rm -r /t/copied /t/tree2/s && mkdir /t/copied" \
            "RUN mv /t/again /t/copied/again" >"$TMPDIR/Containerfile.bud"
        buildah bud -q --runtime runc --network none --squash -t squashed -f "$TMPDIR/Containerfile.bud" "$1"
        buildah bud -q --runtime runc --network none --layers -t bud -f "$TMPDIR/Containerfile.bud" "$1"' - "$WORK/context"
    facts_of bud image bud
    layers_of bud bud
    layers_of squashed squashed
}

# Everything goes: unused images first, then all; no layer, mount or daemon stays.
scenario_prune() {
    step "system prune" 120 podman system prune -f
    step "what was left works" 60 podman run --rm --network=none steps test -e /t/renamed
    step "system prune of everything" 120 bash -euo pipefail -c '
        podman rm -fa -t 0 >&2; podman volume prune -f >&2; podman system prune -af >&2
        test -z "$(podman images -aq)$(podman ps -aq)$(podman volume ls -q)"'
    check "$STORE: no layer is left" 60 "${INSIDE[@]}" bash -euc '
        driver=overlay; test -d "$1/overlay" || driver=vfs
        test -z "$(find "$1/$driver" -mindepth 1 -maxdepth 2 ! -name l ! -name dir ! -name staging ! -name "*mount-program" | tee /dev/stderr)"' - "$WORK/$STORE/store"
    end_engine "$STORE"
    if no_mounts "$WORK/$STORE"; then pass "$STORE: no mount and no daemon is left"; else fail "$STORE: mounts or daemons are left"; fi
}

compare_stores() {
    local stores other file
    read -ra stores <<<"${CONTAINERS_STORES:-ours vfs}"
    for other in "${stores[@]:1}"; do
        for file in "$OUT/$other"/*; do
            same "${stores[0]} and $other: $(basename "$file")" "$file" "$OUT/${stores[0]}/$(basename "$file")"
        done
    done
}
