#!/bin/sh
# Prints the transcript of README.md: commands, and what they say. `unionfs` is the one in PATH.
# A test (tests/mount8/documents.rs) runs it and compares.
set -eu
export LC_ALL=C
place=$(mktemp -d)
trap 'unionfs umount "$place/merged" 2>/dev/null || :; rm -rf "$place"' EXIT
cd "$place"
run() {
    echo "\$ $1"
    sh -c "$1" 2>&1
}
run 'mkdir base upper merged'
run 'echo "colour = red" > base/settings; echo hello > base/greeting; echo old > base/unwanted'
run 'unionfs -o lowerdir=base,upperdir=upper merged'
run 'ls merged'
run 'echo "colour = blue" > merged/settings    # copied up, then changed'
run 'rm merged/unwanted                        # hidden by a whiteout'
run 'mkdir merged/docs && echo new > merged/docs/index'
run 'cat merged/settings; ls merged'
run 'cat base/settings; ls base                # nothing has changed here'
run 'ls -A upper                               # all changes are here'
run 'unionfs diff -o lowerdir=base upper'
run 'unionfs umount merged'
