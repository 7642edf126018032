#!/usr/bin/env bash
# The first pjdfstest, in C and shell: pjdfstest-c.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# Each script of it plans a number of cases; a case that is missing or `not ok` is a failure, one
# marked TODO is not.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 2G perl cc autoreconf prove openssl

if [ ! -x "$SOURCE/pjdfstest" ]; then
    (cd "$SOURCE" && autoreconf -ifs && ./configure && make pjdfstest) >"$LOGS/build.log" 2>&1 \
        || die "cannot build it: $(tail -n 3 "$LOGS/build.log")"
fi

mkdir -p "$WORK"/{empty,lower/inside/deep,upper,work,mnt}
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
cd "$WORK/mnt/inside/deep"
for test in "$SOURCE"/tests/*/*.t; do
    name=$(basename "$(dirname "$test")")/$(basename "$test" .t)
    log=$LOGS/${name/\//-}.log status=0
    timeout -k 10 300 bash "$test" >"$log" 2>&1 </dev/null || status=$?
    awk -v name="$name" -v status="$status" '
        /^1\.\.[0-9]+/ { split($1, plan, "[.][.]"); planned = plan[2] + 0; if (/# [Ss][Kk][Ii][Pp]/) { print name, "skipped", $0; none = 1 } }
        /^(not )?ok [0-9]+/ {
            bad = $1 == "not"; number = bad ? $3 : $2; seen++
            if (bad && !/# TODO/) { sub(/^not ok [0-9]+ *-? */, ""); print name "/" number, "failed", $0 }
            else print name "/" number, "ok"
        }
        END {
            if (!none && (seen != planned || status != 0 || !planned))
                print name "/plan", "failed", seen + 0 " of " planned + 0 " cases ran, exit status " status
        }' "$log" >>"$RESULTS"
done
cd /
judge
if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
