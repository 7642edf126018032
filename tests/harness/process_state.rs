//! Nothing that a process shares between its threads, and nothing of the test's own threads, is changed by
//! mounts. Each is tried in a process of its own, as other tests run beside these.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::place::{Place, text};

/// Runs an ignored test of this file alone in a process.
fn alone(name: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("process_state::{name}")])
        .args(["--ignored", "--test-threads=1", "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = told + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}

/// What the kernel says of this thread and its process, as far as it is not about time and memory.
fn state() -> BTreeMap<String, String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let kept = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
    ];
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let lines = lines.filter(|(name, _)| kept.contains(name));
    let mut state: BTreeMap<_, _> = lines.map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    assert_eq!(state.len(), kept.len());
    let link = |name: &str| {
        let path = format!("/proc/thread-self/{name}");
        format!("{:?}", fs::read_link(path).unwrap())
    };
    for name in ["cwd", "root", "ns/mnt", "ns/user"] {
        state.insert(name.to_owned(), link(name));
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    state.insert("limits".to_owned(), limits);
    let bits = rustix::thread::capabilities_secure_bits().unwrap();
    state.insert("secure bits".to_owned(), format!("{bits:?}"));
    state
}

fn work() {
    let place = Place::new();
    let mut union = place.mount();
    fs::write(union.join("f"), "changed").unwrap();
    fs::create_dir(union.join("new")).unwrap();
    fs::rename(union.join("d"), union.join("new/d")).unwrap();
    assert_eq!(text(union.join("new/d/a")), "one");
    union.upper_changes().unwrap();
    let snapshot = union.snapshot().unwrap();
    union.reset().unwrap();
    union.restore(&snapshot).unwrap();
}

#[test]
fn mounts_change_nothing_of_the_process() {
    alone("unchanged");
}

#[test]
#[ignore = "run by the test above, alone in a process"]
fn unchanged() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    let temp = tempfile::tempdir().unwrap();
    std::env::set_current_dir(temp.path()).unwrap();
    let before = state();
    work();
    assert_eq!(state(), before);
    let place = Place::new();
    let union = place.mount();
    assert_eq!(state(), before, "while it is mounted");
    // The umask that counts is still this process's.
    let file = fs::File::create(union.join("made")).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o640);
    let other = thread::spawn(state).join().unwrap();
    assert_eq!(other, before, "in a new thread");
}

#[test]
fn mounts_leave_nothing_behind() {
    alone("nothing_left");
}

#[test]
#[ignore = "run by the test above, alone in a process"]
fn nothing_left() {
    let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let now = || (count("fd"), count("task"));
    let before = now();
    for _ in 0..20 {
        work();
    }
    // Threads for slow work end when they had none for some seconds.
    for _ in 0..1500 {
        if now() == before {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(now(), before, "descriptors and threads");
}
