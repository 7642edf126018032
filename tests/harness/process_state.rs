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

/// A process that is killed while it waits for its own mount ends, and so does the mount.
#[test]
fn a_killed_process_ends() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_state::waits_for_itself"])
        .args(["--ignored", "--test-threads=1"])
        .env("TMPDIR", temp.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let soon = |what: &str, happens: &mut dyn FnMut() -> bool| {
        for _ in 0..1000 {
            if happens() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not within ten seconds: {what}");
    };
    soon("it waits", &mut || temp.path().join("waiting").exists());
    thread::sleep(Duration::from_millis(50));
    child.kill().unwrap();
    soon("it ends", &mut || child.try_wait().unwrap().is_some());
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = temp.path().to_str().unwrap();
    soon("the mount is gone", &mut || !table().contains(path));
}

#[test]
#[ignore = "run by the test above, and killed"]
fn waits_for_itself() {
    let place = Place::new();
    let slow = unionfs::Fault::delay(
        unionfs::Operation::CreateDirectory,
        Duration::from_secs(3600),
    );
    let union = place
        .builder()
        .fault(slow)
        .mount(place.path("mnt"))
        .unwrap();
    fs::write(std::env::temp_dir().join("waiting"), "").unwrap();
    fs::create_dir(union.join("new")).unwrap();
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
