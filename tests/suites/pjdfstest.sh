#!/usr/bin/env bash
# pjdfstest on a fresh mount: pjdfstest.sh [unionfs|overlay|plain]
#
# On unionfs every case has to pass that pjdfstest.exclude does not name. On the other two the
# numbers are only printed, to be put beside ours.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite_start "${1:-unionfs}" ram 2G pjdfstest perl cc

mkdir -p "$WORK"/{empty,lower/inside/deep,upper,work,mnt} "$BASE/second"
echo "a lower file" >"$WORK/lower/inside/file"
mount -t tmpfs tmpfs "$BASE/second"
MOUNTS+=("$BASE/second")
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"

# Two runs, because pjdfstest leaks descriptors that are open for writing, and no file system can
# be remounted read-only while there are any: the EROFS cases get a process of their own.
sed 's/^allow_remount = true/allow_remount = false/' "$SUITES/pjdfstest.toml" >"$BASE/no-remount.toml"
# Nor does `mount -o remount` reach the kernel on FUSE: mount(8) hands it to fuse3's helper, which
# would start a daemon. With -i, which the runner cannot be told, it asks the kernel itself.
mkdir "$BASE/bin"
printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$BASE/bin/mount"
chmod +x "$BASE/bin/mount"
run() {
    local log=$1 config=$2 preload=$3 status=0
    shift 3
    # Deep inside a lower directory, so that the way there is copied up first.
    PATH=$BASE/bin:$PATH NO_COLOR=1 LD_PRELOAD=$preload timeout -k 10 400 pjdfstest -c "$config" -s "$BASE/second" \
        -p "$WORK/mnt/inside/deep" "$@" >"$log" 2>&1 || status=$?
    # It also exits 1 when cases fail; without its summary it did not finish.
    grep -q '^Summary: ' "$log" || { tail -n 20 "$log"; die "pjdfstest ended early, status $status"; }
}
cc -O -shared -fPIC -o "$BASE/mknod-null.so" "$SUITES/mknod-null.c" || die "cannot compile mknod-null.c"
run "$LOGS/main.log" "$BASE/no-remount.toml" ""
run "$LOGS/erofs.log" "$SUITES/pjdfstest.toml" "" erofs
run "$LOGS/char.log" "$BASE/no-remount.toml" "$BASE/mknod-null.so" ::char

# One line a case: NAME ok|FAILED|skipped.
{
    awk 'NF == 2 && $2 ~ /^(ok|FAILED|skipped)$/ && $1 !~ /::erofs/' "$LOGS/main.log"
    awk 'NF == 2 && $2 ~ /^(ok|FAILED|skipped)$/' "$LOGS/erofs.log"
} >"$LOGS/cases"

# pjdfstest skips its EMLINK case where libc does not know the limit, that is everywhere but on
# a few file systems that libc has a table for. The layers are on ext4, whose limit is 65,000.
emlink() {
    timeout -k 10 400 perl -e '
        use POSIX;
        my $dir = shift; mkdir $dir or die "mkdir: $!";
        open(my $f, ">", "$dir/0") or die "create: $!";
        for (1 .. 64999) { link("$dir/0", "$dir/$_") or die "link $_: $!" }
        die "link 65000 gave no EMLINK" if link("$dir/0", "$dir/more") || $! != EMLINK;
        die "wrong link count" if (stat "$dir/0")[3] != 65000;
        for (0 .. 64999) { unlink("$dir/$_") or die "unlink $_: $!" }
        rmdir $dir or die "rmdir: $!";' "$WORK/mnt/inside/emlink" >"$LOGS/emlink.log" 2>&1
}
if grep -q '^link::link_count_max  *skipped' "$LOGS/cases"; then
    started=$SECONDS
    if emlink; then echo "EMLINK ok"; else echo "EMLINK FAILED"; fi >>"$LOGS/cases"
    say "link_count_max is skipped by pjdfstest here; own check of EMLINK: $(tail -n 1 "$LOGS/cases" | cut -d' ' -f2) ($((SECONDS - started)) s) $(cat "$LOGS/emlink.log")"
fi

# open::etxtbsy does not wait until the program runs that it has started, and the kernel cuts a file of FUSE for
# O_TRUNC before it asks whether somebody executes it (docs/SEMANTICS.md): now and then the program has no text left
# to run. So the case is made here, with a program that has answered.
etxtbsy() {
    # shellcheck disable=SC2016 # Its own words.
    timeout -k 10 60 perl -e '
        use Errno "ETXTBSY"; use Fcntl; use IPC::Open2;
        my ($from, $to) = @ARGV;
        system("cp", $from, $to) == 0 or die "cp";
        my $pid = open2(my $out, my $in, $to);
        print $in "x\n"; $in->flush; <$out> eq "x\n" or die "it does not run";
        for ([O_WRONLY, "O_WRONLY"], [O_RDWR, "O_RDWR"], [O_RDONLY | O_TRUNC, "O_RDONLY|O_TRUNC"]) {
            die "$$_[1]: no ETXTBSY: $!" if sysopen(my $f, $to, $$_[0]) || $! != ETXTBSY;
        }
        kill 9, $pid; waitpid $pid, 0; unlink $to or die "unlink: $!";' "$(command -v cat)" "$WORK/mnt/inside/busy"
}
grep -q '^open::etxtbsy ' "$LOGS/cases" || fail "open::etxtbsy did not run"
if said=$(etxtbsy 2>&1); then said="open::etxtbsy ok"; else say "  own check of ETXTBSY: $said"; said="open::etxtbsy FAILED"; fi
sed -i "s/^open::etxtbsy .*/$said/" "$LOGS/cases"

# What a failed case said, from its own log.
reason() { awk -v c="$1" '$1 == c && $2 == "FAILED" { getline; print; exit }' "$LOGS/main.log" "$LOGS/erofs.log"; }

declare -A used=()
excluded() { # KIND NAME
    local kind name
    while read -r kind name _; do
        # shellcheck disable=SC2053 # a pattern on purpose
        if [ "$kind" = "$1" ] && [[ $2 == $name ]]; then
            used["$kind $name"]=1
            return 0
        fi
    done < <(grep -v '^#' "$SUITES/pjdfstest.exclude")
    return 1
}

ok=0 bad=0 skipped=0 allowed=0
while read -r name result; do
    case $result in
    ok)
        ok=$((ok + 1))
        if [ "$TARGET" = unionfs ] && excluded fail "$name"; then
            say "  note: $name is excluded but passes"
        fi
        ;;
    skipped)
        skipped=$((skipped + 1))
        [ "$TARGET" != unionfs ] || excluded skip "$name" || fail "$name was skipped without a reason in pjdfstest.exclude"
        ;;
    FAILED)
        if [ "$TARGET" = unionfs ] && excluded fail "$name"; then
            allowed=$((allowed + 1))
        else
            bad=$((bad + 1))
            # Beside ours the other targets are only counted.
            if [ "$TARGET" = unionfs ]; then fail "$name:$(reason "$name")"; else say "  fails   $name:$(reason "$name")"; fi
        fi
        ;;
    esac
done <"$LOGS/cases"
if [ "$TARGET" = unionfs ]; then
    while read -r kind name _; do
        [ -n "${used["$kind $name"]:-}" ] || fail "pjdfstest.exclude: '$kind $name' matches nothing that happened"
    done < <(grep -v '^#' "$SUITES/pjdfstest.exclude")
fi
PASSED=$ok
[ $((ok + bad + allowed)) -ge 390 ] || fail "only $((ok + bad + allowed)) cases ran"
say "pjdfstest on $TARGET: $ok passed, $((bad + allowed)) failed ($allowed of them excluded with a reason), $skipped skipped"

# The cases with a character device once more, with one that is no whiteout. None is excluded.
grep -q '::char  *ok' "$LOGS/char.log" || fail "no case ran with character device 1:3"
while read -r name result; do
    [ "$result" = ok ] || fail "$name with character device 1:3: $result:$(awk -v c="$name" '$1 == c { getline; print; exit }' "$LOGS/char.log")"
done < <(awk 'NF == 2 && $2 ~ /^(ok|FAILED|skipped)$/' "$LOGS/char.log")
say "the cases with a character device, as 1:3: $(grep -c '  ok$' "$LOGS/char.log") passed"

if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
