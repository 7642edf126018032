//! `mount -N`: mounting in the mount namespace of another process.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::command::eventually;
use crate::machine::Machine;

/// A process in a mount namespace of its own, where `setup` was run.
struct Other(Child);

impl Other {
    fn new(machine: &Machine, setup: &str) -> Self {
        let script = machine.at(&format!("{setup}; : > @/ready; read _"));
        let child = Command::new("unshare")
            .args(["-m", "sh", "-ec", &script])
            // Until it is closed, without starting another program.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let other = Self(child);
        eventually("the namespace is there", || machine.path("ready").exists());
        other
    }

    fn table(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn by_process_and_by_path() {
    let machine = Machine::new();
    // Only there: the layer's contents and the mountpoint.
    let setup = "mount -t tmpfs there @/l1; echo there > @/l1/top; mkdir @/l1/m";
    let other = Other::new(&machine, setup);
    let pid = other.0.id();
    let options = "-t unionfs -o lowerdir=@/l1:@/l2,upperdir=@/u union @/l1/m";
    for namespace in [pid.to_string(), format!("/proc/{pid}/ns/mnt")] {
        machine
            .sh(&format!("mount -N {namespace} {options}"))
            .good();
        assert!(
            other.table().contains(" - fuse.unionfs union "),
            "{}",
            other.table()
        );
        assert!(machine.mounts("l1/m").is_empty(), "it is mounted here too");
        let seen = machine.sh(&format!("nsenter -t {pid} -m cat @/l1/m/top @/l1/m/bottom"));
        assert_eq!(seen.good().stdout, "there\nfrom l2\n");
        machine.sh(&format!("umount -N {namespace} @/l1/m")).good();
        eventually("the daemon is gone", || {
            machine.daemons_of("unionfs").is_empty()
        });
    }
}

/// mount(8) promises that the other namespace needs no programs and libraries.
#[test]
fn where_no_program_could_be_started() {
    let machine = Machine::new();
    let other = Other::new(&machine, "mkdir @/empty; mount --bind @/empty /usr");
    let pid = other.0.id();
    machine
        .sh(&format!(
            "mount -N {pid} -t unionfs -o lowerdir=@/l1:@/l2 union @/m"
        ))
        .good();
    assert!(
        other.table().contains(" - fuse.unionfs union "),
        "{}",
        other.table()
    );
    machine.sh(&format!("umount -N {pid} @/m")).good();
    eventually("the daemon is gone", || {
        machine.daemons_of("unionfs").is_empty()
    });
}

#[test]
fn a_namespace_that_is_none() {
    let machine = Machine::new();
    let outcome = machine.sh("/sbin/mount.unionfs none @/m -N /dev/null -o lowerdir=@/l1");
    assert_eq!(outcome.code, Some(32));
    assert_eq!(
        outcome.stderr,
        "unionfs: option -N: /dev/null: Invalid argument (os error 22)\n"
    );
    assert!(machine.mounts("m").is_empty());
}
