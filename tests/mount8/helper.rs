//! The switches of mount(8) that reach its helpers, and umount without a helper of ours.

use std::fs;

use crate::machine::Machine;

#[test]
fn fake_mounts_nothing() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0\n");
    for command in [
        "mount -f -t unionfs -o lowerdir=@/l1,upperdir=@/u none @/m",
        "mount -f -t fuse.unionfs -o lowerdir=@/l1,upperdir=@/u none @/m",
        "mount -f @/m",
        "mount -fa",
    ] {
        let outcome = machine.sh(command);
        outcome.good();
        assert_eq!(outcome.stdout, "", "{command}");
        assert_eq!(machine.unions().len(), 0, "{command}");
        assert!(machine.daemons().is_empty(), "{command}");
        for dir in ["u", "w"] {
            let touched = fs::read_dir(machine.path(dir)).unwrap().count();
            assert_eq!(touched, 0, "{command} wrote to {dir}");
        }
    }
}

#[test]
fn fake_finds_what_is_wrong() {
    let machine = Machine::new();
    for (options, place, word) in [
        ("lowerdir=@/none", "@/m", "/none"),
        ("lowerdir=@/l1,upperdir=@/l1/top", "@/m", "/l1/top"),
        ("lowerdir=@/l1,upperdir=@/u,workdir=@/none", "@/m", "/none"),
        ("lowerdir=@/l1", "@/none", "/none"),
        ("lowerdir=@/l1", "@/l1/top", "/l1/top"),
        ("lowerdir=@/l1,threads=x", "@/m", "threads"),
        ("remount,ro", "@/m", "remount"),
    ] {
        let outcome = machine.sh(&format!("mount -f -t unionfs -o {options} none {place}"));
        assert_eq!(outcome.code, Some(32), "{options}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

#[test]
fn verbose_shows_the_command() {
    let machine = Machine::new();
    let outcome = machine.sh("mount -v -t unionfs -o upperdir=@/u @/l1:@/l2 @/m");
    let line = outcome.good().stdout.lines().next().unwrap();
    assert!(line.contains("/unionfs mount "), "{}", outcome.stdout);
    machine.mounted("m");
    machine.umount("m");
    // What was shown can be run.
    machine.sh(line).good();
    machine.works("m");
    machine.umount("m");
}

#[test]
fn no_mtab_is_accepted() {
    let machine = Machine::new();
    machine
        .sh("mount -n -t unionfs -o upperdir=@/u @/l1:@/l2 @/m")
        .good();
    machine.works("m");
    machine.umount("m");
}

#[test]
fn sloppy_says_nothing_of_unknown_options() {
    let machine = Machine::new();
    let log = machine.path("log");
    for (switch, warned) in [("", true), ("-s", false)] {
        let command = "-t unionfs -o upperdir=@/u,frobnicate,log_file=@/log @/l1:@/l2 @/m";
        let told = machine.sh(&format!("mount {switch} {command}"));
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        assert_eq!(
            told.stderr.contains("frobnicate"),
            warned,
            "{switch}: {}",
            told.stderr
        );
        machine.umount("m");
        let text = fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(text.contains("frobnicate"), warned, "{switch}: {text}");
        let _ = fs::remove_file(&log);
    }
}

#[test]
fn usage_is_exit_code_1() {
    let machine = Machine::new();
    for words in ["", "a", "a b c", "a b -x", "a b -o", "a b -N here"] {
        let outcome = machine.sh(&format!("/sbin/mount.unionfs {words}"));
        assert_eq!(outcome.code, Some(1), "{words}");
        assert!(
            outcome.stderr.starts_with("mount.unionfs: "),
            "{}",
            outcome.stderr
        );
        assert_eq!(outcome.stderr.lines().count(), 1);
    }
}

#[test]
fn repeated_options() {
    let machine = Machine::new();
    machine
        .sh("/sbin/mount.fuse.unionfs none @/m -o lowerdir=@/l1:@/l2 -o upperdir=@/u -n -t x")
        .good();
    machine.works("m");
    machine.umount("m");
}

/// Nothing to find the daemon or fusermount3 with.
#[test]
fn without_an_environment() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\nunionfs#@/l1 @/m2 fuse ro 0 0\n");
    machine.sh("env -i /usr/bin/mount -a").good();
    machine.works("m");
    machine.mounted("m2");
    machine.sh("env -i /usr/bin/umount @/m2").good();
    machine.umount("m");
}

/// umount(8) needs no helper: none is installed, and every way of calling it works.
#[test]
fn umount_in_every_way() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\n");
    for command in [
        "umount @/m",
        "umount @/l1:@/l2",
        "umount -l @/m",
        "umount -f @/m",
        "umount -n -v @/m",
        "umount -t fuse.unionfs -a",
        "umount -i @/m",
        "umount -R @/m",
        "umount -c @/m",
        "unionfs umount @/m",
        "fusermount3 -u @/m",
        "fusermount3 -u -z @/m",
    ] {
        machine.sh("mount -a").good();
        machine.shows_lowers("m");
        let outcome = machine.sh(command);
        assert_eq!(outcome.code, Some(0), "{command}: {}", outcome.stderr);
        machine.is_gone("m");
    }
}

/// `umount -r` makes read-only what is busy.
#[test]
fn umount_r() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\n");
    machine.sh("mount -a").good();
    let held = fs::File::open(machine.path("m/top")).unwrap();
    // By a relative path: with an absolute one umount of util-linux 2.38 fails for any filesystem.
    machine.sh("umount -r m");
    assert!(machine.mounted("m").has("ro"));
    assert_eq!(machine.daemons().len(), 2);
    drop(held);
    machine.umount("m");
}
