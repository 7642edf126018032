#!/usr/bin/env bash
# Everything that can be seen of a tree, one line a fact, in a fixed order: facts.sh DIR
#
# Two runs of a scenario make files at different times: a time after that of the file $FACTS_SINCE
# is shown as `new`. What is in $FACTS_VARYING (a pattern of find's -regex) differs from run to run,
# such as logs with times in them: it has to be there, with the same owner and mode. With
# $FACTS_NO_ATTRIBUTES extended attributes are not looked at.
set -euo pipefail
export LC_ALL=C
cd "$1"
since=$(stat -c %.9Y "$FACTS_SINCE")
varying=${FACTS_VARYING:-nothing}

# Names without line breaks are taken for granted; any other byte may be in them. The root directory is
# left out: podman's drivers give it modes of their own, whatever a layer says.
{
    find . -xdev -mindepth 1 -regextype posix-extended \
        -type d -printf '%p\t%y %#m %U:%G\t%T@\n' \
        -o -regex "$varying" -printf '%p\t%y %#m %U:%G varies\tvaries\n' \
        -o -printf '%p\t%y %#m %U:%G %s bytes %l\t%T@\n' \
        | awk -F '\t' -v OFS='\t' -v since="$since" '$3 + 0 > since + 0 { $3 = "new" } { print }' | sort
    find . -xdev -regextype posix-extended -type f ! -regex "$varying" -print0 \
        | xargs -0 -r sha256sum | sort
    find . -xdev \( -type b -o -type c \) -exec stat -c '%n device %t:%T' {} + | sort
    [ -n "${FACTS_NO_ATTRIBUTES:-}" ] || find . -xdev -print0 | xargs -0 -r getfattr -h -d -m - -e hex -- 2>/dev/null \
        | awk '/^# file: / { f = substr($0, 9); next } NF { print f "\t" $0 }' | sort
    # Names of one file that can be seen. (A link count may be higher: names in lower layers that upper
    # ones hide count, as in kernel overlayfs.)
    find . -xdev ! -type d -links +1 -printf '%i\t%p\n' | sort -t "$(printf '\t')" -k 1,1n -k 2 \
        | awk -F '\t' 'function flush() { if (names > 1) print line; names = 0; line = "linked:" }
                       $1 != i { flush(); i = $1 } { names++; line = line " " $2 } END { flush() }' | sort
}
