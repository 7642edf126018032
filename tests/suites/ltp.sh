#!/usr/bin/env bash
# What the Linux Test Project has about file systems: ltp.sh SOURCE_DIR [unionfs|plain|overlay|fuse-overlayfs]
#
# Its groups fs, fs_perms_simple and dio, and of the group syscalls what works on files, each with its
# TMPDIR in a directory of a lower. What makes a file system of its own instead is left out, as it never
# comes to this one. The long ones take LTP_LENGTH seconds (5) each, and none more than LTP_SECONDS (300).
# LTP_GROUPS="fs dio" and LTP_CASES="rename01 gf*" run only these.
. "$(dirname "${BASH_SOURCE[0]}")/third.sh"
third_start "${1:-}" "${2:-}" ram 4G autoconf make cc

build() {
    cd "$SOURCE" || return 1
    [ ! -x testcases/kernel/syscalls/write/write01 ] || return 0
    [ -x configure ] || make autotools || return 1
    [ -e include/mk/config.mk ] || ./configure --disable-metadata || return 1
    make -j2 -C lib && make -j2 -C libs || return 1
    # Some need libraries that are not here; what is not built is not run.
    make -k -j2 -C testcases/kernel/fs
    make -k -j2 -C testcases/kernel/syscalls
    make -k -j2 -C testcases/kernel/io
    make -k -j2 -C testcases/lib
    [ -x testcases/kernel/syscalls/write/write01 ]
}
build >"$LOGS/build.log" 2>&1 || die "cannot build it: $(tail -n 3 "$LOGS/build.log")"
# As an installed LTP has it: programs that a test copies are in there too.
export LTPROOT=$BASE/ltp
mkdir -p "$BASE/bin" "$LTPROOT/testcases"
ln -s "$BASE/bin" "$LTPROOT/testcases/bin"
find "$SOURCE/testcases" -type f -perm -u+x ! -name '*.sh' ! -name '*.[ch]' -exec ln -sft "$BASE/bin" {} +
find "$SOURCE/testcases" -type f -name '*.sh' -exec ln -sft "$BASE/bin" {} +
install -m 755 "$SOURCE/testcases/kernel/fs/doio/rwtest" "$BASE/bin/"
export PATH=$PATH:$BASE/bin

# The system calls that work on files.
FILES='(f?access(at2?)?|l?f?chmod(at2?)?|[lf]?chown(at)?|f?chdir|chroot|copy_file_range|creat|execve(at)?|fadvise|posix_fadvise|fallocate|fanotify'
FILES+='|fcntl|flock|fdatasync|fsync|l?f?stat(at|x|fs|vfs)?|fpathconf|pathconf|ftruncate|truncate|getcwd|getdents|readdir|[lf]?(get|set|list|remove)xattr(at)?'
FILES+='|inotify(_init1_)?|io_submit|ioctl_fi[a-z]*|link(at)?|l?lseek|mkdir(at)?|mknod(at)?|mmap|msync|munmap|mincore|name_to_handle_at|open(at2?)?'
FILES+='|open_by_handle_at|pread(v2?)?|pwrite(v2?)?|readv?|writev?|readahead|readlink(at)?|realpath|remap_file_pages|rename(at2?)?|rmdir|sendfile|splice|tee|vmsplice'
FILES+='|symlink(at)?|syncfs|sync_file_range|umask|unlink(at)?|u?ftime|utimes?|utimensat|futimesat|cachestat|file_attr|creat|diotest|dio)[0-9]+(_[0-9]+|[A-Z])?(_64)?'

# cases: the lines `NAME COMMAND` to be run.
cases() {
    local group name command
    for group in ${LTP_GROUPS:-fs fs_perms_simple dio syscalls}; do
        while read -r name command; do
            case $name in '' | \#*) continue ;; esac
            [ $group != syscalls ] || [[ $name =~ ^$FILES$ ]] || continue
            # Not about this file system.
            case $name in proc01 | read_all* | isofs | squashfs* | binfmt_misc* | quota_remount* | fs_racer) continue ;; esac
            wanted "$name" || continue
            ! own_device "$command" || continue
            echo "$name $command"
        done <"$SOURCE/runtest/$group"
    done
}
read -ra WANTED <<<"${LTP_CASES:-*}"
wanted() {
    local pattern
    for pattern in "${WANTED[@]}"; do
        # shellcheck disable=SC2053 # a pattern on purpose
        [[ $1 != $pattern ]] || return 0
    done
    return 1
}
# own_device COMMAND: whether the test mounts file systems of its own.
own_device() {
    local program=${1%% *} file
    file=$(readlink "$BASE/bin/$program") || return 1
    [[ $file == *.sh ]] || file=${file%_64}.c
    grep -qsE '\.(needs_device|mount_device|all_filesystems|needs_rofs|needs_overlay)|tst_acquire_device|TST_(NEEDS|MOUNT)_DEVICE=1' "$file"
}

mkdir -p "$WORK"/{empty,lower/inside/deep,upper,work,mnt}
chmod 1777 "$WORK/lower/inside/deep"
mount_target "$WORK/mnt" "$WORK/empty:$WORK/lower" "$WORK/upper" "$WORK/work"
export TMPDIR=$WORK/mnt/inside/deep
cases >"$LOGS/cases"
LENGTH=${LTP_LENGTH:-5}
# Its own limit is for slow machines; ours ends all of a test's processes.
export LTP_COLORIZE_OUTPUT=n
while read -r name command; do
    log=$LOGS/$name.log status=0
    program=${command%% *}
    if ! command -v "$program" >/dev/null; then
        echo "$name skipped $program was not built" >>"$RESULTS"
        continue
    fi
    command=$(sed -E "s/ -L [0-9]+/ -L $LENGTH/; s/ -i [0-9]+s/ -i ${LENGTH}s/" <<<"$command")
    mkdir -p "$TMPDIR/cwd"
    (cd "$TMPDIR/cwd" && timeout -k 10 "${LTP_SECONDS:-300}" bash -c "$command") >"$log" 2>&1 </dev/null || status=$?
    # LTP: 1 failed, 2 broken, 4 a warning, 32 not for this machine or file system.
    case $status in
    0) echo "$name ok" ;;
    32) echo "$name skipped $(grep -m 1 TCONF "$log")" ;;
    4) echo "$name ok" ;;
    *) echo "$name failed exit status $status: $(grep -aE -m 1 'TFAIL|TBROK' "$log" | tr -d '\0' | cut -c1-160)" ;;
    esac >>"$RESULTS"
    # shellcheck disable=SC2115 # $TMPDIR is never empty here
    chmod 1777 "$TMPDIR"
    find "$TMPDIR" -mindepth 1 -delete 2>/dev/null || true
done <"$LOGS/cases"
judge
cd /
if unmount_target "$WORK/mnt"; then pass "unmount"; else fail "unmount"; fi
