#!/usr/bin/env bash
# Programs that check what they wrote: programs.sh - [unionfs|plain|overlay|fuse-overlayfs]
#
# dbench, fio with verify in each of its ways, sqlite with several writers in both kinds of journal,
# git with many commits, gc and fsck; all begin on files of a lower. `-` because they come as packages.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:--}" "${2:-}" ram 4G dbench fio sqlite3 git python3

LOADFILE=$(find /usr/share -name client.txt -path '*dbench*' | head -n 1)
mkdir -p "$WORK"/{empty,lower/{dbench,fio,sqlite,git},upper,work,mnt}
head -c 16M /dev/urandom >"$WORK/lower/fio/lower"
sqlite3 "$WORK/lower/sqlite/db" 'create table t(id integer primary key, who int, text text); insert into t values(1, 0, "lower")'
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git -C "$WORK/lower/git" init -q
for i in $(seq 50); do echo "$i" >"$WORK/lower/git/$i"; done
git -C "$WORK/lower/git" add . && git -C "$WORK/lower/git" commit -qm first
state "$WORK/lower" >"$LOGS/lower.before"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
M=$WORK/mnt
# fio leaves a file where it is started.
cd "$BASE"

[ -n "$LOADFILE" ] || die "dbench's client.txt is not there"
check "dbench, 4 clients" 180 dbench -c "$LOADFILE" -D "$M/dbench" -t 30 4 || true
for engine in psync mmap libaio; do
    for pattern in randwrite randrw write; do
        check "fio $engine $pattern" 180 fio --name=verify --directory="$M/fio" --filename="$engine-$pattern" --size=32M --rw=$pattern \
            --bsrange=512-64k --ioengine=$engine --verify=crc32c --do_verify=1 --verify_fatal=1 --fallocate=none || true
    done
done
check "fio on a lower file" 180 fio --name=verify --filename="$M/fio/lower" --size=16M --rw=randwrite --bs=4k --ioengine=psync \
    --verify=sha1 --do_verify=1 --verify_fatal=1 || true

# Four writers at a time; each row that was committed has to be there.
cat >"$BASE/sqlite.py" <<'PY'
import multiprocessing, sqlite3, sys

path, mode, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])

def write(who):
    db = sqlite3.connect(path, timeout=120)
    for i in range(150):
        with db:
            db.execute("insert into t(who, text) values(?, ?)", (who, "x" * (i * 7 % 3000)))

db = sqlite3.connect(path)
assert db.execute("pragma journal_mode=" + mode).fetchone() == (mode,)
db.close()
writers = [multiprocessing.Process(target=write, args=(who,)) for who in range(1, 5)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
    assert writer.exitcode == 0
db = sqlite3.connect(path)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
assert db.execute("select count(*) from t where who > 0").fetchone() == (rows,)
PY
check "sqlite, delete" 300 python3 "$BASE/sqlite.py" "$M/sqlite/db" delete 600 || true
check "sqlite, wal" 300 python3 "$BASE/sqlite.py" "$M/sqlite/db" wal 1200 || true

git_stress() {
    local i
    set -e
    cd "$1"
    for i in $(seq 200); do
        echo "$i" >>$((i % 60))
        [ $((i % 10)) -ne 0 ] || git mv -k "$((i % 50 + 1))" "moved-$i"
        git add -A
        git commit -qm "$i"
        [ $((i % 50)) -ne 0 ] || git gc -q
        [ $((i % 40)) -ne 0 ] || { git checkout -qb "b$i" HEAD~5; git checkout -q -; git merge -q "b$i"; }
    done
    git gc -q --aggressive --prune=now
    git fsck --full --strict
    [ -z "$(git status --porcelain)" ]
    [ "$(git rev-list --count HEAD)" -ge 200 ]
    git clone -q . clone
    git -C clone fsck --full
    rm -r clone
}
check "git" 400 bash -c "$(declare -f git_stress); git_stress '$M/git'" || true

if [ "$TARGET" != plain ]; then
    state "$M" >"$LOGS/before"
    if unmount_target "$M"; then pass "unmount"; else fail "unmount"; fi
    mount_target "$M" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
    state "$M" >"$LOGS/after"
    [ -s "$LOGS/before" ] || fail "nothing was listed"
    check "all is there after a remount" 60 diff "$LOGS/before" "$LOGS/after" || true
    state "$WORK/lower" >"$LOGS/lower.after"
    check "the lower is unchanged" 60 cmp "$LOGS/lower.before" "$LOGS/lower.after" || true
fi
