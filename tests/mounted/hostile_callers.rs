//! Callers who want more than they may. What they get is what a plain directory gives them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::process::finish;
use crate::support::Stack;
use crate::user::{DeviceMode, Place, USER};

/// What root has put there: programs with set-id bits that anyone may write, a directory like /tmp, one
/// that hands its group on, ACLs, a device.
const TREE: &str = r#"
for name in uid gid both trunc cut range alloc append chown chmod; do
    cp /usr/bin/true $name
    chmod 6777 $name
done
chmod 4777 uid
chmod 2777 gid
mkdir -m 1777 sticky
mkdir sticky/dir
echo root > sticky/root
echo of-1001 > sticky/of-1001
chown 1001:1001 sticky/of-1001
mkdir hands-on
chown 0:2000 hands-on
chmod 2777 hands-on
echo secret > private
chmod 600 private
echo acl > masked
chmod 600 masked
setfacl -m u:1000:rwx,m::r masked
echo acl > granted
chmod 600 granted
setfacl -m u:1000:rw granted
mkdir defaults
setfacl -d -m u:1000:rwx,g::-,o::- defaults
chmod 777 defaults
mkdir closed
chmod 711 closed
echo there > closed/known
mkdir -m 700 shut
echo there > shut/known
mknod null c 1 3
chmod 666 null
echo mine > mine
chown 1000:1000 mine
cp /usr/bin/true mine-suid
chown 1000:1000 mine-suid
chmod 6755 mine-suid
cp /usr/bin/true capable
chmod 777 capable
setcap cap_net_raw+ep capable
"#;

/// What is tried, each with what comes of it, and what is there afterwards.
const ATTEMPTS: &str = r#"
try() {
    if out=$("$@" 2>&1); then echo "$*: done $out"; else echo "$*: ${out##*: }"; fi
}
write() { dd if=/usr/bin/true of="$1" bs=64 count=1 conv=notrunc status=none; }
try write uid
try write gid
try write both
try dd if=/dev/null of=trunc status=none
try truncate -s 100 cut
try fallocate -l 99999 alloc
try write capable
try dd if=/usr/bin/true of=append bs=64 count=1 oflag=append conv=notrunc status=none
try python3 -c 'import os; a = os.open("mine", 0); b = os.open("range", 1); os.copy_file_range(a, b, 4)'
try chown 1000 chown
try chmod 4777 chmod
try chgrp 1000 mine-suid
try chgrp 3000 mine-suid
try chgrp 0 mine
try chown 0 mine
try chown 1001 mine
try chmod 6777 mine
try mknod device c 1 3
try mknod block b 8 0
try mknod sticky/fifo p
try mv sticky/root sticky/other
try rm -f sticky/root
try rm -f sticky/of-1001
try rmdir sticky/dir
try mv sticky/dir sticky/dir2
try mv mine sticky/of-1001
try ln granted sticky/granted
try sh -c 'echo mine > sticky/new && mv sticky/new sticky/of-1001'
try rm -f private
try cat private
try ln private sticky/linked
try mv private sticky/moved
try sh -c 'cat masked; echo x > masked'
try sh -c 'cat granted; echo x > granted; chmod 666 granted'
try setfacl -m u:1000:rwx masked
try setfacl -b granted
try sh -c 'umask 0; echo x > defaults/new; mkdir defaults/sub; ls -ln defaults | tr -s " " | cut -d" " -f1,3,4,9'
try getfacl -cn defaults/new defaults/sub
try sh -c 'cp /usr/bin/true hands-on/x; chmod 2755 hands-on/x; mkdir hands-on/d; touch hands-on/y'
try python3 -c 'import os; os.umask(0); os.close(os.open("hands-on/z", os.O_CREAT, 0o6777)); os.mkdir("hands-on/e", 0o7777)'
try cat closed/known
try ls closed
try cat shut/known
try stat -c %a shut/known
try sh -c ': > closed/new'
try setfattr -n trusted.a -v b mine
try setfattr -n security.a -v b mine
try setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= mine
try setcap cap_sys_admin+ep mine
try setfattr -n system.posix_acl_access -v x mine
try setfattr -n user.a -v b mine
try setfattr -n user.a -v b sticky
try setfattr -n user.a -v b private
try getfattr -n trusted.overlay.opaque sticky
try chattr +i mine
try touch -d 2001-01-01 private
try touch granted
try touch -d 2001-01-01 granted
try sh -c 'echo x > null'
try sh -c ': > in-root'
try mkdir in-root-too
try rm -rf hands-on defaults sticky
"#;

/// Everything there is, as root sees it.
const STATE: &str = r#"
find . -mindepth 1 -not -name lost+found | LC_ALL=C sort | while read -r name; do
    stat -c '%n %F %a %u:%g %t.%T' "$name"
    [ -L "$name" ] || getfattr -h -d -m - -e hex "$name" 2> /dev/null | grep -v '^# '
done
true
"#;

/// Runs the attempts in a directory as `caller`, a command; tells what came of them.
fn attempts(dir: &Path, caller: &[&str]) -> String {
    let run = |before: &[&str], text: &str| {
        let mut command = Command::new("timeout");
        command
            .args(["-k5", "60"])
            .args(before)
            .args(["sh", "-c", text]);
        // The umask is the caller's.
        let outcome = finish(command.current_dir(dir).env("LC_ALL", "C"));
        format!("{}{}", outcome.stdout, outcome.stderr)
    };
    let tried = run(caller, ATTEMPTS);
    format!("{tried}{}", run(&[], STATE))
}

fn fill(dir: &Path) {
    let outcome = finish(Command::new("sh").args(["-euc", TREE]).current_dir(dir));
    assert!(outcome.status.success(), "{}", outcome.stderr);
}

/// The same on a plain directory, on what a lower has and on what the upper has.
fn as_on_a_plain_directory(caller: &[&str]) {
    for in_upper in [false, true] {
        let layers = Stack::new().lower([""; 0]).build();
        let plain = layers.scratch().join("plain");
        fs::create_dir(&plain).unwrap();
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o755)).unwrap();
        fill(&plain);
        fill(if in_upper {
            layers.upper_path()
        } else {
            &layers.lowers[0]
        });
        let m = layers.mount();
        let expected = attempts(&plain, caller);
        let found = attempts(m.path(), caller);
        assert!(expected.lines().count() > 100, "{expected}");
        let differences: Vec<_> = expected
            .lines()
            .zip(found.lines())
            .filter(|(a, b)| a != b)
            .filter(|(a, _)| !allowed(caller, a))
            .collect();
        assert!(differences.is_empty(), "plain, union: {differences:#?}");
        assert_eq!(expected.lines().count(), found.lines().count(), "{found}");
    }
}

/// What docs/SEMANTICS.md says of set-id bits: a change of size by uid 0 leaves them where on a plain
/// directory CAP_FSETID decides.
fn allowed(caller: &[&str], line: &str) -> bool {
    let by_root = caller.contains(&"--bounding-set=-all");
    let names = ["./alloc ", "./cut ", "./range ", "./trunc "];
    by_root && names.iter().any(|name| line.starts_with(name))
}

#[test]
fn an_ordinary_user() {
    as_on_a_plain_directory(&["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]);
}

#[test]
fn a_user_of_more_groups() {
    as_on_a_plain_directory(&[
        "setpriv",
        "--reuid=1000",
        "--regid=1000",
        "--groups=1000,2000,3000",
    ]);
}

/// Root of a user namespace, of which only the user himself is mapped.
#[test]
fn root_of_a_user_namespace_of_his_own() {
    let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    as_on_a_plain_directory(&[&user[..], &["unshare", "-Ur"]].concat());
}

/// And of one in which many are, root of the machine not among them.
#[test]
fn root_of_a_user_namespace_of_many_ids() {
    let text = r#"
go=$(mktemp -u)
mkfifo "$go"
unshare -U --keep-caps sh -c 'read -r _ < "$0"; exec setpriv --reuid=0 --regid=0 --clear-groups "$@"' "$go" "$@" &
until [ "$(readlink "/proc/$!/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.02; done
echo 0 1000 65536 > "/proc/$!/uid_map"
echo 0 1000 65536 > "/proc/$!/gid_map"
echo > "$go"
wait $!
rm "$go"
"#;
    as_on_a_plain_directory(&["sh", "-c", text, "sh"]);
}

/// Without CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_MKNOD and the rest root's number alone gives nothing.
#[test]
fn root_without_capabilities() {
    as_on_a_plain_directory(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
}

/// What root of a user namespace makes in a mount of his own has no power outside of it.
#[test]
fn what_is_made_in_a_user_namespace_has_no_power_outside() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = r#"
$unionfs -o "$options,suid,dev" "$mnt"
cd "$mnt"
cp /usr/bin/id suid
chown 0:0 suid
chmod 6755 suid
! chown 1:1 suid 2> /dev/null
! mknod null c 1 3 2> /dev/null
! setfattr -n trusted.overlay.opaque -v y e 2> /dev/null
! setfattr -n user.overlay.opaque -v y e 2> /dev/null
! setfattr -n user.containers.override_stat -v 0:0:104755 suid 2> /dev/null || true
cp /usr/bin/id capable
setcap cap_sys_admin,cap_setuid+ep capable
chmod 4755 f
# Whoever is not of this namespace does not come in.
echo $$ > "$TMPDIR/pid"
while [ ! -e "$TMPDIR/looked" ]; do sleep 0.05; done
cd /
umount "$mnt"
"#;
    let outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| place.script(&["unshare", "-Urm"], text));
        let pid = crate::process::wait_for(std::time::Duration::from_secs(15), || {
            let text = fs::read_to_string(place.layers.scratch().join("pid")).ok()?;
            text.trim().parse::<u32>().ok()
        });
        let inside = pid.map(|pid| format!("/proc/{pid}/root{}", place.layers.mnt.display()));
        let seen = inside.map(|path| fs::metadata(Path::new(&path).join("suid")).map(|m| m.len()));
        fs::write(place.layers.scratch().join("looked"), "").unwrap();
        let outcome = running.join().unwrap();
        let seen = seen.expect("the script came so far");
        let errno = seen
            .expect_err("root of the machine came in")
            .raw_os_error();
        assert_eq!(errno, Some(libc::EACCES));
        outcome
    });
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    place.check();
    let upper = place.layers.upper_path();
    for entry in fs::read_dir(upper).unwrap().flatten() {
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (USER, USER), "{:?}", entry.path());
        let kind = meta.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
        let attributes = xattr::list(entry.path()).unwrap();
        for name in attributes.map(|name| name.into_string().unwrap()) {
            assert!(!name.starts_with("trusted."), "{name}");
            if name == "security.capability" {
                // Of version 3, which counts in namespaces of that root only.
                let value = xattr::get(entry.path(), &name).unwrap().unwrap();
                assert_eq!((value.len(), value[3]), (24, 3));
                assert_eq!(value[20..], USER.to_le_bytes());
            }
        }
    }
}

/// Programs with set-id bits and devices of layers mean nothing in a mount of an ordinary user's.
#[test]
fn set_id_programs_and_devices_through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let lower = place.layers.scratch().join("of-root");
    fs::create_dir(&lower).unwrap();
    let outcome = finish(Command::new("sh").current_dir(&lower).args([
        "-euc",
        "chmod 755 .; cp /usr/bin/id id; chmod 6755 id; mknod null c 1 3; chmod 666 null
         cp /usr/bin/id capable; setcap cap_setuid+ep capable",
    ]));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let text = r#"
$unionfs -o "lowerdir=$TMPDIR/of-root,suid,dev,${options#*,}" "$mnt"
grep " $mnt " /proc/self/mountinfo | cut -d' ' -f6
stat -c %a:%u "$mnt/id"
"$mnt/id" -u
! "$mnt/capable" -G 0 > /dev/null 2>&1 || true
! cat "$mnt/null" 2>&1
fusermount3 -u "$mnt"
"#;
    let outcome = place.script(&[], text);
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(
        lines[0].contains("nosuid") && lines[0].contains("nodev"),
        "{lines:?}"
    );
    assert_eq!(lines[1..3], ["6755:0", "1"], "{lines:?}");
    assert!(lines[3].ends_with("Permission denied"), "{lines:?}");
}
