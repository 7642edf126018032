//! `mount -o remount`: the kernel's flags change, the daemon stays the one it was.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::libc::EROFS;

use crate::machine::Machine;

const LINES: [&str; 3] = [
    "@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0\n",
    "none @/m fuse.unionfs lowerdir=@/l1:@/l2,upperdir=@/u 0 0\n",
    "unionfs#@/u=RW:@/l1=RO:@/l2=RO @/m fuse cow,allow_other 0 0\n",
];

fn is_read_only(machine: &Machine, expected: bool) {
    let outcome = fs::write(machine.path("m/file"), "");
    let errno = outcome.err().and_then(|error| error.raw_os_error());
    assert_eq!(errno, expected.then_some(EROFS));
    let line = machine.mounted("m");
    assert!(line.has(if expected { "ro" } else { "rw" }), "{line:?}");
    assert!(!line.has(if expected { "rw" } else { "ro" }), "{line:?}");
}

#[test]
fn read_only_and_back() {
    for line in LINES {
        let machine = Machine::new();
        machine.fstab(line);
        machine.sh("mount -a").good();
        let daemons = machine.daemons();
        is_read_only(&machine, false);
        // By its line in fstab, and by what the mount table says.
        for entry in [line, ""] {
            machine.fstab(entry);
            machine.sh("mount -o remount,ro @/m").good();
            is_read_only(&machine, true);
            machine.shows_lowers("m");
            machine.sh("mount -o remount,rw @/m").good();
            is_read_only(&machine, false);
            assert_eq!(machine.daemons(), daemons, "{line}");
        }
        machine.umount("m");
    }
}

#[test]
fn without_mount() {
    let machine = Machine::new();
    machine
        .sh("unionfs -o lowerdir=@/l1:@/l2,upperdir=@/u @/m")
        .good();
    machine.sh("unionfs -o remount,ro @/m").good();
    is_read_only(&machine, true);
    machine
        .sh("unionfs mount -o remount,rw anything @/m")
        .good();
    is_read_only(&machine, false);
    machine.umount("m");
}

#[test]
fn other_flags() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\n");
    machine.sh("cp /bin/true @/l1/true; mount -a").good();
    machine.sh("@/m/true").good();
    machine
        .sh("mount -o remount,nosuid,nodev,noexec,noatime @/m")
        .good();
    let line = machine.mounted("m");
    for option in ["nosuid", "nodev", "noexec", "noatime", "rw"] {
        assert!(line.has(option), "{option}: {line:?}");
    }
    assert_eq!(machine.sh("@/m/true").code, Some(126));
    // fstab's line has none of them, and the rule for access times stays unless one is given.
    machine.sh("mount -o remount,relatime @/m").good();
    let line = machine.mounted("m");
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(!line.has(option), "{option}: {line:?}");
    }
    assert!(line.has("relatime"), "{line:?}");
    machine.sh("@/m/true").good();
    machine.sh("mount -o remount,sync,lazytime @/m").good();
    let line = machine.mounted("m");
    assert!(line.has("sync") && line.has("lazytime"), "{line:?}");
    assert_eq!(machine.daemons().len(), 2);
    machine.umount("m");
}

#[test]
fn busy_with_a_writer() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\n");
    machine.sh("mount -a").good();
    let writer = fs::File::create(machine.path("m/open")).unwrap();
    let outcome = machine.sh("mount -o remount,ro @/m");
    assert_eq!(outcome.code, Some(32));
    assert!(
        outcome.stderr.contains("files are open for writing"),
        "{}",
        outcome.stderr
    );
    assert!(machine.mounted("m").has("rw"));
    drop(writer);
    machine.sh("mount -o remount,ro @/m").good();
    is_read_only(&machine, true);
    machine.umount("m");
}

#[test]
fn nowhere_to_write() {
    let machine = Machine::new();
    for options in ["defaults", "upperdir=@/u,ro"] {
        machine.fstab(&format!("@/l1:@/l2 @/m unionfs {options} 0 0\n"));
        machine.sh("mount -a").good();
        let outcome = machine.sh("mount -o remount,rw @/m");
        assert_eq!(outcome.code, Some(32), "{options}");
        assert!(
            outcome.stderr.contains("rw: it was mounted with ro"),
            "{}",
            outcome.stderr
        );
        assert_eq!(outcome.stderr.lines().count(), 1);
        is_read_only(&machine, true);
        machine.umount("m");
    }
}

#[test]
fn only_mounts_of_ours() {
    let machine = Machine::new();
    machine.sh("mount -t tmpfs none @/m2").good();
    for (place, cause) in [
        ("@/m", "nothing is mounted there"),
        ("@/m2", "mounted as tmpfs"),
    ] {
        for command in ["/sbin/mount.unionfs none", "unionfs mount --check none"] {
            let outcome = machine.sh(&format!("{command} {place} -o remount,ro"));
            assert_ne!(outcome.code, Some(0), "{command} {place}");
            let line = &outcome.stderr;
            assert!(
                line.contains("option remount") && line.contains(cause),
                "{line}"
            );
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }
    assert!(machine.mounted("m2").has("rw"));
    machine.sh("umount @/m2").good();
}

#[test]
fn a_user_may_not() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,user,noauto 0 0\n");
    machine.sh_as_user("mount @/m").good();
    let outcome = machine.sh_as_user("/sbin/mount.unionfs none @/m -o remount,ro");
    assert_eq!(outcome.code, Some(32));
    assert!(
        outcome.stderr.contains("only root may change a mount"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1);
    assert!(machine.mounted("m").has("rw"));
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
}

/// Of the file `name`, which is made for this, and of the directory `dir`: whether reading it, reading it again
/// and listing the directory change the access time.
fn read_changes(machine: &Machine, name: &str, dir: &str) -> [bool; 3] {
    let (file, dir) = (machine.path(name), machine.path(dir));
    let accessed = |path: &Path| fs::metadata(path).unwrap().accessed().unwrap();
    let changed = |path: &Path, read: &dyn Fn()| {
        let before = accessed(path);
        // Longer than times of files are coarse.
        thread::sleep(Duration::from_millis(20));
        read();
        accessed(path) != before
    };
    fs::write(&file, "text").unwrap();
    let read = || assert_eq!(fs::read(&file).unwrap(), b"text");
    let first = changed(&file, &read);
    let second = changed(&file, &read);
    let listed = changed(&dir, &|| assert_eq!(fs::read_dir(&dir).unwrap().count(), 1));
    [first, second, listed]
}

/// Access times go by the union's rule, whatever the mount of the upper says.
#[test]
fn access_times() {
    let machine = Machine::new();
    let rules = [
        ("noatime", [false, false, false]),
        ("relatime", [true, false, true]),
        ("strictatime", [true, true, true]),
        ("relatime,nodiratime", [true, false, false]),
        ("strictatime,nodiratime", [true, true, false]),
    ];
    for own in ["noatime", "strictatime"] {
        machine
            .sh(&format!("mount -t tmpfs -o {own} none @/m2"))
            .good();
        for place in ["upperdir=@/m2/u", "upperdir=@/m2/u,workdir=@/m2/w"] {
            machine.sh("rm -rf @/m2/*; mkdir @/m2/u @/m2/w").good();
            for number in 0..2 * rules.len() {
                machine
                    .sh(&format!("mkdir @/m2/u/d{number}; touch @/m2/u/d{number}/x"))
                    .good();
            }
            for (number, (rule, expected)) in rules.into_iter().enumerate() {
                let text = format!("{rule} of the union, {own} of the upper, {place}");
                machine
                    .sh(&format!("mount -t unionfs -o {place},{rule} @/l1:@/l2 @/m"))
                    .good();
                let found = read_changes(&machine, "m/f", &format!("m/d{number}"));
                assert_eq!(found, expected, "{text}");
                machine.umount("m");
            }
            machine
                .sh(&format!("mount -t unionfs -o {place} @/l1:@/l2 @/m"))
                .good();
            for (number, (rule, expected)) in (rules.len()..).zip(rules) {
                let text = format!("remounted {rule}, {own} of the upper, {place}");
                machine.sh(&format!("mount -o remount,{rule} @/m")).good();
                let found = read_changes(&machine, "m/g", &format!("m/d{number}"));
                assert_eq!(found, expected, "{text}");
            }
            machine.umount("m");
        }
        machine.sh("umount @/m2").good();
    }
}
