# The layers of the Debian suite: four lowers with changes over a base, and, beside them, what the
# merge has to look like, made with ordinary commands on a plain copy of the base.
# shellcheck shell=bash

# whiteout DIALECT LAYER PATH: PATH of the layers below is gone. Kernel overlayfs does not read
# .wh. files, so on that target they become character devices.
whiteout() {
    local dialect=$1 at=$2/$3
    mkdir -p "$(dirname "$at")"
    [ "$TARGET:$dialect" != overlay:aufs ] || dialect=chardev
    case $dialect in
    aufs) : >"$(dirname "$at")/.wh.$(basename "$at")" ;;
    chardev) mknod "$at" c 0 0 ;;
    xattr)
        setfattr -n trusted.overlay.opaque -v x "$(dirname "$at")"
        : >"$at"
        setfattr -n trusted.overlay.whiteout -v y "$at"
        ;;
    esac
    rm -r "${EXPECTED:?}/$3"
}

# opaque DIALECT LAYER DIR: an opaque directory with one new file.
opaque() {
    local dialect=$1 layer=$2 dir=$3
    mkdir -p "$layer/$dir"
    [ "$TARGET" != overlay ] || dialect=trusted.overlay
    case $dialect in
    aufs) : >"$layer/$dir/.wh..wh..opq" ;;
    *) setfattr -n "$dialect.opaque" -v y "$layer/$dir" ;;
    esac
    rm -r "${EXPECTED:?}/$dir"
    mkdir "$EXPECTED/$dir"
    added "$layer" "$dir/only-file"
}

# added LAYER PATH: a new file; it may replace what the layers below have under that name.
added() {
    local over
    over=$(dirname "$EXPECTED/$2")
    [ -d "$over" ] || rm -f "$over"
    mkdir -p "$(dirname "$1/$2")" "$over"
    echo "$(basename "$1") has $2" >"$1/$2"
    rm -rf "${EXPECTED:?}/$2"
    cp -a "$1/$2" "$EXPECTED/$2"
}

# make_layers BASE LAYERS_DIR: makes layer1 (above the base) to layer4 (on top).
make_layers() {
    local base=$1 layers=$2 doc=usr/share/doc l name
    cp -a "$base" "$EXPECTED"

    l=$layers/layer1
    mkdir -p "$l"
    whiteout aufs "$l" $doc/bash
    whiteout aufs "$l" $doc/coreutils/NEWS.gz
    added "$l" etc/issue
    added "$l" opt/gone-later
    added "$l" opt/directory-later
    mkdir -p "$l/$doc/adduser"
    for name in "$l" "$EXPECTED"; do
        chmod 2750 "$name/$doc/adduser"
        chown 1:1 "$name/$doc/adduser"
    done
    chmod 2750 "$l/$doc/adduser" "$EXPECTED/$doc/adduser"

    l=$layers/layer2
    mkdir -p "$l"
    whiteout chardev "$l" $doc/coreutils/README.gz
    opaque trusted.overlay "$l" $doc/dpkg
    added "$l" $doc/gpgv # a file where there was a directory
    added "$l" opt/directory-later/in # a directory where there was a file
    truncate -s 64M "$l/$doc/holes"
    printf begin | dd of="$l/$doc/holes" conv=notrunc status=none
    printf end | dd of="$l/$doc/holes" bs=1 seek=50000000 conv=notrunc status=none
    cp -a "$l/$doc/holes" "$EXPECTED/$doc/holes"

    l=$layers/layer3
    mkdir -p "$l"
    opaque aufs "$l" $doc/login
    added "$l" $doc/bash/again # over the whiteout of layer1
    whiteout xattr "$l" $doc/coreutils/THANKS.gz
    mkdir -p "$l/opt/odd" "$EXPECTED/opt/odd" "$l/$doc/adduser"
    chmod 2750 "$l/$doc/adduser"
    chown 1:1 "$l/$doc/adduser"
    chmod 2750 "$l/$doc/adduser"
    for name in "$l" "$EXPECTED"; do
        rm -f "$name/$doc/adduser/TODO"
        ln -s ../../../lib/os-release "$name/$doc/adduser/TODO"
        touch -h -d '1965-01-02 03:04:05.678901234' "$name/$doc/adduser/TODO"
        (
            cd "$name/opt/odd" || exit 1
            echo data >attributes
            setfattr -n user.comment -v "some text" attributes
            setfattr -n trusted.comment -v "more text" attributes
            setfacl -m u:1:rwx,g:2:r attributes
            setcap cap_net_raw+ep attributes
            mkfifo -m 622 fifo
            mknod null c 1 3
            echo latin >"$(printf 'caf\351')"
            echo long >"$(printf 'n%.0s' {1..255})"
            touch -d '1960-06-07 08:09:10.123456789' ./*
        )
    done

    l=$layers/layer4
    mkdir -p "$l"
    whiteout chardev "$l" opt/gone-later
    whiteout aufs "$l" $doc/sed
    opaque user.overlay "$l" $doc/gzip
    opaque user.fuseoverlayfs "$l" $doc/grep
    [ "$TARGET" = overlay ] || : >"$l/$doc/.wh.never-existed"
    for name in "$l" "$EXPECTED"; do
        mkdir -p "$name/opt/links"
        echo linked >"$name/opt/links/one"
        touch -d '2001-02-03 04:05:06.7' "$name/opt/links/one"
        ln "$name/opt/links/one" "$name/opt/links/two"
    done
}

# manifest DIR [all]: everything one can see of a tree, one line a fact, in a fixed order. With
# `all` also change times and directories' times, for trees that nobody may touch.
manifest() {
    local facts='%y %#m %U:%G' times=' %T@ %C@'
    (
        cd "$1" || exit 1
        if [ "${2:-}" = all ]; then
            find . -xdev -printf "%p\t$facts %s$times %l\n"
        else
            find . -xdev -type d -printf "%p\t$facts\n" -o -printf "%p\t$facts %s %T@ %l\n"
        fi | sort
        find . -xdev -type f -exec sha256sum {} + | sort
        find . -xdev \( -type b -o -type c \) -exec stat -c '%n device %t:%T' {} + | sort
        find . -xdev -print0 | xargs -0 getfattr -h -d -m - -e hex -- 2>/dev/null \
            | awk '/^# file: / { f = substr($0, 9); next } NF { print f "\t" $0 }' | sort
    )
}
