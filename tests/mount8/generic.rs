//! Options that mount(8) has for every filesystem: seen in the mount table where the kernel knows
//! them, else accepted without a word.

use crate::machine::Machine;

/// Options, and what the mount table shows and does not show of each.
const SHOWN: [(&str, &[&str], &[&str]); 20] = [
    ("rw", &["rw"], &["ro"]),
    ("ro", &["ro"], &["rw"]),
    ("nosuid", &["nosuid"], &[]),
    ("suid", &[], &["nosuid"]),
    ("nodev", &["nodev"], &[]),
    ("dev", &[], &["nodev"]),
    ("noexec", &["noexec"], &[]),
    ("exec", &[], &["noexec"]),
    ("noatime", &["noatime"], &["relatime"]),
    ("atime", &["relatime"], &["noatime"]),
    ("nodiratime", &["nodiratime", "relatime"], &["noatime"]),
    ("diratime", &[], &["nodiratime"]),
    ("relatime", &["relatime"], &["noatime"]),
    ("strictatime", &[], &["relatime", "noatime"]),
    ("sync", &["sync"], &[]),
    ("async", &[], &["sync"]),
    ("dirsync", &["dirsync"], &[]),
    ("lazytime", &["lazytime"], &[]),
    ("nosymfollow", &["nosymfollow"], &[]),
    (
        "noatime,nodiratime,nosuid,nodev",
        &["noatime", "nodiratime", "nosuid", "nodev"],
        &[],
    ),
];

fn shown_by(helper: &str) {
    let machine = Machine::new();
    for (options, yes, no) in SHOWN {
        // In fstab, not by -o, which would add rw to ro.
        machine.fstab(&format!(
            "none @/m {helper} lowerdir=@/l1:@/l2,upperdir=@/u,{options} 0 0\n"
        ));
        machine.sh("mount -a").good();
        let line = machine.mounted("m");
        for option in yes {
            assert!(line.has(option), "{options}: no {option} in {line:?}");
        }
        for option in no {
            assert!(!line.has(option), "{options}: {option} in {line:?}");
        }
        machine.umount("m");
    }
}

#[test]
fn shown_by_the_kernel() {
    shown_by("unionfs");
}

#[test]
fn shown_by_the_kernel_through_mount_fuse_unionfs() {
    shown_by("fuse.unionfs");
}

#[test]
fn quiet() {
    let machine = Machine::new();
    for options in [
        "defaults",
        "auto",
        "noauto",
        "user",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "x-systemd.automount,x-foo=1",
        "X-mount.mkdir",
        "comment=some_words",
        "nouser,nolazytime,loud,silent",
    ] {
        for kind in ["unionfs", "fuse.unionfs"] {
            machine.fstab(&format!(
                "none @/m {kind} lowerdir=@/l1:@/l2,upperdir=@/u,log_file=@/log,{options} 0 0\n"
            ));
            machine.sh("mount @/m").good();
            machine.works("m");
            let line = machine.mounted("m");
            for implied in ["user", "users", "owner", "group"] {
                if options == implied {
                    assert!(line.has("nosuid") && line.has("nodev"), "{line:?}");
                }
            }
            machine.umount("m");
            let log = std::fs::read_to_string(machine.path("log")).unwrap_or_default();
            assert_eq!(log, "", "{options}");
        }
    }
}

/// The flags are not only shown.
#[test]
fn the_kernel_enforces_them() {
    let machine = Machine::new();
    let base = "lowerdir=@/l1:@/l2,upperdir=@/u";
    machine
        .sh("cp /bin/true @/l1/true; mknod @/l1/null c 1 3; ln -s top @/l1/link")
        .good();
    machine
        .sh(&format!("mount -t unionfs -o {base} none @/m"))
        .good();
    machine
        .sh("@/m/true && : > @/m/null && cat @/m/link")
        .good();
    machine.umount("m");
    machine
        .sh(&format!(
            "mount -t unionfs -o {base},noexec,nodev,nosymfollow none @/m"
        ))
        .good();
    for command in ["@/m/true", ": > @/m/null", "cat @/m/link"] {
        assert_ne!(machine.sh(command).code, Some(0), "{command}");
    }
    machine.umount("m");
}
