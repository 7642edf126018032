//! From the return of mount(8) to the end of the daemon.

use std::fs::{self, File};
use std::io::Read;

use crate::command::eventually;
use crate::machine::Machine;

const LINE: &str = "@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0\n";

/// The output is read to its end: a daemon that kept it open would be noticed.
#[test]
fn mounted_and_detached_when_mount_returns() {
    let machine = Machine::new();
    machine.fstab(LINE);
    machine.sh("mount -a; cat @/m/top").good();
    for pid in machine.daemons() {
        for fd in ["0", "1", "2"] {
            let to = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
            assert_eq!(to.to_str(), Some("/dev/null"), "{fd}");
        }
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(cwd.to_str(), Some("/"));
        // Only its own things are open: no descriptor of mount(8) or of the shell.
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let to = fs::read_link(entry.unwrap().path()).unwrap();
            assert!(!to.ends_with("fstab"), "{}", to.display());
        }
    }
    machine.umount("m");
}

#[test]
fn a_busy_mount_stays() {
    let machine = Machine::new();
    machine.fstab(LINE);
    machine.sh("mount -a").good();
    let held = File::open(machine.path("m/top")).unwrap();
    let outcome = machine.sh("umount @/m");
    assert_eq!(outcome.code, Some(32));
    assert!(outcome.stderr.contains("busy"), "{}", outcome.stderr);
    machine.works("m");
    drop(held);
    machine.umount("m");
}

#[test]
fn a_lazy_unmount_serves_open_files() {
    let machine = Machine::new();
    machine.fstab(LINE);
    machine.sh("mount -a").good();
    let mut held = File::open(machine.path("m/top")).unwrap();
    machine.sh("umount -l @/m").good();
    assert!(machine.mounts("m").is_empty());
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from l1\n");
    assert_eq!(machine.daemons().len(), 2);
    drop(held);
    machine.is_gone("m");
}

/// A lazily unmounted one lets go of the upper when its files are closed; the next mount waits for it.
#[test]
fn mounted_again_at_once() {
    let machine = Machine::new();
    machine.fstab(LINE);
    for _ in 0..5 {
        machine
            .sh("mount @/m && umount -l @/m && mount @/m && umount @/m")
            .good();
    }
    machine.is_gone("m");
}

/// As containers/storage does with idmapped mounts of its layers.
#[test]
fn layers_detached_after_the_return() {
    let machine = Machine::new();
    machine
        .sh(
            "mkdir @/u/bound; mount --bind @/l1 @/w; mount -t tmpfs none @/l2; echo from l2 | \
             tee @/l2/both > @/l2/bottom",
        )
        .good();
    machine.fstab("none @/m unionfs lowerdir=@/w:@/l2,upperdir=@/u/bound 0 0\n");
    machine
        .sh("mount -a && umount -l @/w && umount -l @/l2")
        .good();
    machine.shows_lowers("m");
    fs::remove_file(machine.path("m/bottom")).unwrap();
    fs::write(machine.path("m/both"), "changed\n").unwrap();
    assert_eq!(
        fs::read_to_string(machine.path("l1/both")).unwrap(),
        "from l1\n"
    );
    machine.sh("umount @/m").good();
    machine.is_gone("m");
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_umount_takes_away() {
    let machine = Machine::new();
    machine.fstab(&LINE.replace("workdir", "nosupervise,workdir"));
    machine.sh("mount -a").good();
    assert_eq!(machine.daemons().len(), 1);
    let pid = machine.daemons()[0];
    machine.sh(&format!("kill -9 {pid}")).good();
    eventually("it is dead", || machine.daemons().is_empty());
    let error = fs::read(machine.path("m/top")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTCONN));
    machine.umount("m");
    machine.sh("mount -a").good();
    machine.works("m");
    machine.umount("m");
}

/// The process that `pid` was started by.
fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_line_outlives_its_server() {
    let machine = Machine::new();
    machine.fstab(LINE);
    machine.sh("mount -a").good();
    for _ in 0..2 {
        let pids = machine.daemons();
        assert_eq!(pids.len(), 2);
        let server = pids.iter().find(|pid| pids.contains(&parent(**pid)));
        let server = server.expect("the one is the other's child");
        machine.sh(&format!("kill -9 {server}")).good();
        machine.shows_lowers("m");
        eventually("another serves", || {
            let now = machine.daemons();
            now.len() == 2 && !now.contains(server)
        });
        machine.sh("mount -a").good();
        assert_eq!(machine.daemons().len(), 2);
    }
    machine.works("m");
    machine.umount("m");
}

/// mount(2) comes first: fusermount3 is not needed where the kernel allows it, and is where it does not.
#[test]
fn fusermount3_only_when_it_is_needed() {
    let machine = Machine::new();
    machine.give_to_user();
    let none = "FUSERMOUNT_PATH=/nonexistent";
    machine
        .sh(&format!(
            "{none} mount -t unionfs -o upperdir=@/u @/l1:@/l2 @/m"
        ))
        .good();
    machine.works("m");
    machine.umount("m");
    machine.give_to_user();
    let command = "/sbin/mount.unionfs @/l1:@/l2 @/m -o upperdir=@/u";
    let outcome = machine.sh_as_user(&format!("{none} {command}"));
    assert_eq!(outcome.code, Some(32));
    assert!(
        outcome.stderr.contains("fusermount3 is not installed"),
        "{}",
        outcome.stderr
    );
    machine.sh_as_user(command).good();
    machine.mounted("m");
    machine.sh_as_user("umount @/m").good();
    machine.is_gone("m");
}
