//! fstab lines that let users mount: the helper runs as the user, without PATH and HOME, and the mount
//! is made by fusermount3.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::machine::{Machine, USER};

fn user_line(kind: &str, line: &str) {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab(&format!("{line}\n"));
    machine.sh_as_user("mount @/m").good();
    let shown = machine.mounted("m");
    assert_eq!(shown.kind, "fuse.unionfs");
    let source = line.split(' ').next().unwrap();
    assert_eq!(shown.source, machine.at(source), "{kind}");
    for option in [
        format!("user_id={USER}"),
        "nosuid".into(),
        "nodev".into(),
        "noexec".into(),
    ] {
        assert!(shown.has(&option), "{kind}: {shown:?}");
    }
    let done = machine.sh_as_user("cat @/m/top; echo text > @/m/new; rm @/m/bottom; ls @/m");
    assert_eq!(done.good().stdout, "from l1\nboth\nnew\ntop\n");
    assert_eq!(fs::metadata(machine.path("u/new")).unwrap().uid(), USER);
    for pid in machine.daemons() {
        let uid = fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!(uid, USER, "the daemon is not the user's");
    }
    // A second time it is mounted already, for root's `mount -a` too.
    machine.sh("mount -a").good();
    machine.mounted("m");
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
}

#[test]
fn user() {
    user_line(
        "user",
        "@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w,user 0 0",
    );
}

#[test]
fn users() {
    user_line(
        "users",
        "@/l1:@/l2 @/m fuse.unionfs upperdir=@/u,users,noauto 0 0",
    );
}

#[test]
fn user_of_a_unionfs_fuse_line() {
    user_line(
        "unionfs#",
        "unionfs#@/u=RW:@/l1=RO:@/l2=RO @/m fuse cow,user 0 0",
    );
}

#[test]
fn root_takes_a_users_mount_away() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,user 0 0\n");
    machine.sh_as_user("mount @/m").good();
    machine.sh("umount @/m").good();
    machine.is_gone("m");
}

/// mount(8) drops its privileges then and goes on; fusermount3 decides.
#[test]
fn a_line_without_user() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,noauto 0 0\n");
    machine.sh_as_user("mount @/m").good();
    assert!(machine.mounted("m").has("nosuid"));
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
    machine.sh("chown 0:0 @/m").good();
    let outcome = machine.sh_as_user("mount @/m");
    assert_eq!(outcome.code, Some(32));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    machine.is_gone("m");
}

#[test]
fn allow_other_needs_the_administrators_leave() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,user,allow_other 0 0\n");
    let outcome = machine.sh_as_user("mount @/m");
    assert_eq!(outcome.code, Some(32));
    assert!(outcome.stderr.contains("allow_other"), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    machine.is_gone("m");
    fs::write("/etc/fuse.conf", "user_allow_other\n").unwrap();
    machine.sh_as_user("mount @/m").good();
    assert_eq!(
        fs::read_to_string(machine.path("m/top")).unwrap(),
        "from l1\n"
    );
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
}

#[test]
fn flags_that_fusermount3_does_not_know_do_no_harm() {
    let machine = Machine::new();
    machine.give_to_user();
    machine.fstab(
        "@/l1:@/l2 @/m unionfs user,exec,noatime,nodiratime,relatime,strictatime,lazytime,sync,dirsync 0 0\n",
    );
    machine.sh_as_user("mount @/m").good();
    assert!(machine.mounted("m").has("sync"));
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
}
