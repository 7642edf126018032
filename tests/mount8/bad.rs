//! What cannot be mounted: one line that names the option and the cause, mount(8)'s exit code,
//! nothing mounted, no process left.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::command::Outcome;
use crate::machine::Machine;

/// One line with all `words`, and nothing left.
fn refused(machine: &Machine, what: &str, outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(32), "{what}: {}", outcome.stderr);
    assert_eq!(
        outcome.stderr.lines().count(),
        1,
        "{what}: {}",
        outcome.stderr
    );
    assert_eq!(outcome.stdout, "", "{what}");
    for word in words {
        assert!(
            outcome.stderr.contains(word),
            "{what}: no {word} in {}",
            outcome.stderr
        );
    }
    let mounts = machine.unions();
    assert!(mounts.is_empty(), "{what}: {mounts:?}");
    assert!(machine.daemons().is_empty(), "{what}: a process is left");
}

const LOWER: &str = "lowerdir=@/l1:@/l2,";
const UPPER: &str = "upperdir=@/u,workdir=@/w,";

/// Good options before it, a bad one, words of the answer.
const OPTIONS: &[(&[&str], &str, &[&str])] = &[
    (
        &[LOWER, UPPER],
        "whiteout=fancy",
        &["whiteout", "fancy", "aufs or overlay"],
    ),
    (&[LOWER, UPPER], "threads=0", &["threads", "'0'"]),
    (
        &[LOWER, UPPER],
        "threads=1000000000000000000000",
        &["threads", "1000"],
    ),
    (&[LOWER, UPPER], "threads=-1", &["threads", "'-1'"]),
    (&[LOWER, UPPER], "threads=", &["threads"]),
    (&[UPPER], "lowerdir=", &["lowerdir"]),
    (&[UPPER], "lowerdir=@/l1::@/l2", &["lowerdir", "empty"]),
    (
        &[UPPER],
        "lowerdir=@/none",
        &["lowerdir", "/none", "No such file"],
    ),
    (
        &[UPPER],
        "lowerdir=@/l1/top",
        &["lowerdir", "/l1/top", "Not a directory"],
    ),
    (&[UPPER], "lowerdir=@/l1:@/l1/sub", &["lowerdir", "/l1/sub"]),
    (
        &[LOWER],
        "upperdir=@/none",
        &["upperdir", "/none", "No such file"],
    ),
    (&[LOWER], "upperdir=@/l1", &["upperdir", "/l1", "overlaps"]),
    (
        &[LOWER, "upperdir=@/u,"],
        "workdir=@/none",
        &["workdir", "/none", "No such file"],
    ),
    (
        &[LOWER, "upperdir=@/u,"],
        "workdir=/proc",
        &["workdir", "/proc"],
    ),
    (&[LOWER, "upperdir=@/u,"], "workdir=@/u", &["workdir", "/u"]),
    (&[LOWER, UPPER], "log=unionfs=loud", &["log", "loud"]),
    (&[LOWER, UPPER], "log_file=/nope/log", &["/nope/log"]),
    (
        &[LOWER, UPPER],
        "lowerdir=@/l2",
        &["lowerdir", "twice", "/l2"],
    ),
    (
        &[LOWER, UPPER],
        "upperdir=@/w",
        &["upperdir", "twice", "/w"],
    ),
    (&[UPPER], "br=@/l1=ro", &["br", "upperdir"]),
    (&[LOWER, UPPER], "volatile=1", &["volatile", "'1'"]),
    (&[LOWER, UPPER], "uidmapping=0:0", &["uidmapping", "'0:0'"]),
    (
        &[LOWER, UPPER],
        "uidmapping=0:x:1",
        &["uidmapping", "0:x:1"],
    ),
    (
        &[LOWER, UPPER],
        "gidmapping=0:4294967290:10",
        &["gidmapping", "4294967295"],
    ),
    (
        &[LOWER, UPPER],
        "uidmapping=0:0:10:5:100:10",
        &["uidmapping", "overlap"],
    ),
    (
        &[LOWER, UPPER],
        "uidmapping=0:0:0",
        &["uidmapping", "0:0:0"],
    ),
    (
        &[LOWER, UPPER],
        "squash_to_uid=x",
        &["squash_to_uid", "'x'"],
    ),
    (
        &[LOWER, UPPER],
        "squash_to_gid=4294967295",
        &["squash_to_gid", "4294967295"],
    ),
    (
        &[LOWER, UPPER],
        "xattr_permissions=3",
        &["xattr_permissions", "'3'"],
    ),
    (&[LOWER, UPPER], "timeout=-1", &["timeout", "'-1'"]),
    (&[LOWER, UPPER], "umask=999", &["umask", "'999'"]),
    (&[LOWER, UPPER], "setuid=nobody", &["setuid", "refused"]),
];

#[test]
fn bad_options() {
    let machine = Machine::new();
    fs::create_dir(machine.path("l1/sub")).unwrap();
    for &(good, option, words) in OPTIONS {
        for kind in ["unionfs", "fuse.unionfs"] {
            let good = good.concat();
            machine.fstab(&format!(
                "none @/m {kind} {good}{option} 0 0
"
            ));
            refused(&machine, option, &machine.sh("mount @/m"), words);
        }
    }
}

#[test]
fn bad_lines() {
    let machine = Machine::new();
    for (line, place, words) in [
        ("none @/m unionfs defaults 0 0", "@/m", &["lower"][..]),
        (
            "@/none:@/l1 @/m unionfs defaults 0 0",
            "@/m",
            &["/none", "No such file"],
        ),
        ("@/l1:: @/m unionfs defaults 0 0", "@/m", &["empty"]),
        ("none @/m unionfs upperdir=@/u 0 0", "@/m", &["lower"]),
        (
            "@/l1 @/none unionfs defaults 0 0",
            "@/none",
            &["/none", "No such file"],
        ),
        (
            "@/l1 @/l2/bottom unionfs defaults 0 0",
            "@/l2/bottom",
            &["/l2/bottom", "Not a directory"],
        ),
        (
            "unionfs#@/none=RW @/m fuse cow 0 0",
            "@/m",
            &["/none", "No such file"],
        ),
        ("unionfs#@/l1=RW:@/l2=FOO @/m fuse cow 0 0", "@/m", &["FOO"]),
        (
            "none @/m unionfs br:@/none=rw 0 0",
            "@/m",
            &["/none", "No such file"],
        ),
    ] {
        machine.fstab(&format!("{line}\n"));
        let outcome = machine.sh(&format!("mount {place}"));
        // libfuse's helper passes the daemon's exit code on.
        let outcome = Outcome {
            code: if line.contains('#') {
                outcome.code.map(|_| 32)
            } else {
                outcome.code
            },
            ..outcome
        };
        refused(&machine, line, &outcome, words);
    }
}

/// The other lines are mounted, and mount(8) says that some are not.
#[test]
fn one_bad_line_of_three() {
    let machine = Machine::new();
    machine.fstab(
        "@/l1 @/m unionfs defaults 0 0\n@/none:@/l1 @/w unionfs defaults 0 0\n\
         @/l2 @/m2 unionfs defaults 0 0\n",
    );
    let outcome = machine.sh("mount -a");
    assert_eq!(outcome.code, Some(64));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    machine.mounted("m");
    machine.mounted("m2");
    assert!(machine.mounts("w").is_empty());
    machine.sh("umount @/m @/m2").good();
    machine.is_gone("m");
}

#[test]
fn the_upper_is_in_use() {
    let machine = Machine::new();
    machine.fstab("@/l1 @/m unionfs upperdir=@/u 0 0\n@/l2 @/m2 unionfs upperdir=@/u,noauto 0 0\n");
    machine.sh("mount -a").good();
    let outcome = machine.sh("mount @/m2");
    assert_eq!(outcome.code, Some(32));
    assert!(outcome.stderr.contains("upperdir=") && outcome.stderr.contains("in use"));
    machine.umount("m");
}

#[test]
fn no_device() {
    let machine = Machine::new();
    machine.fstab("@/l1 @/m unionfs defaults 0 0\n");
    machine
        .sh("mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3")
        .good();
    refused(
        &machine,
        "no /dev/fuse",
        &machine.sh("mount @/m"),
        &["/dev/fuse is missing"],
    );
}

#[test]
fn no_permission_for_the_device() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab("@/l1 @/m unionfs user 0 0\n");
    fs::set_permissions("/dev/fuse", Permissions::from_mode(0o600)).unwrap();
    refused(
        &machine,
        "user",
        &machine.sh_as_user("mount @/m"),
        &["/dev/fuse"],
    );
}

#[test]
fn no_permission_for_the_place() {
    let machine = Machine::new();
    machine.fstab("@/l1 @/m unionfs user 0 0\n");
    // The mountpoint is root's.
    refused(&machine, "user", &machine.sh_as_user("mount @/m"), &["/m"]);
}

#[test]
fn no_program() {
    let machine = Machine::new();
    machine.fstab("@/l1 @/m unionfs defaults 0 0\n");
    machine.sh("umount -l /usr/bin").good();
    // This machine may have one of its own.
    for dir in ["/usr/bin", "/usr/local/bin", "/usr/sbin"] {
        let path = format!("{dir}/unionfs");
        let hide = format!("[ ! -e {path} ] || mount --bind /dev/null {path}");
        machine.sh(&hide).good();
    }
    let outcome = machine.sh("mount @/m");
    assert_eq!(outcome.code, Some(2));
    assert_eq!(
        outcome.stderr,
        "mount.unionfs: no program unionfs beside this one or in /usr/bin, /usr/local/bin, \
         /usr/sbin, /sbin\n"
    );
}
