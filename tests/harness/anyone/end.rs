//! How a mount ends.

use std::fs::{self, File};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use crate::place::{Place, is_mounted, text};

#[test]
fn it_is_there_until_dropped() {
    let place = Place::new();
    let union = place.mount();
    assert!(is_mounted(union.path()));
    assert_eq!(text(union.join("d/a")), "one");
    fs::write(union.join("d/a"), "changed").unwrap();
    fs::remove_file(union.join("f")).unwrap();
    assert_eq!(union.as_ref(), place.path("mnt"));
    drop(union);
    assert!(!is_mounted(&place.path("mnt")));
    assert_eq!(text(place.path("upper/d/a")), "changed");
    assert_eq!(text(place.path("lower/d/a")), "one");
    assert!(place.path("lower/f").exists());
    // Nothing holds the upper any more.
    assert_eq!(text(place.mount().join("d/a")), "changed");
}

#[test]
fn a_panic_leaves_no_mount() {
    let place = Place::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let union = place.mount();
        assert_eq!(text(union.join("f")), "a test that fails");
    }));
    assert!(outcome.is_err());
    assert!(!is_mounted(&place.path("mnt")));
    drop(place.mount());
}

#[test]
fn a_panic_in_another_thread_does_neither() {
    let place = Place::new();
    let mnt = place.path("mnt");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let union = place.mount();
            let _open = File::open(union.join("f")).unwrap();
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
    });
    assert!(!is_mounted(&mnt));
}

#[test]
fn what_is_open_does_not_keep_it() {
    let place = Place::new();
    let union = place.mount();
    let mut file = File::open(union.join("d/a")).unwrap();
    let dir = File::open(union.join("d")).unwrap();
    drop(union);
    assert!(!is_mounted(&place.path("mnt")));
    // Whoever still has something open gets data or an error, and does not hang.
    let _ = file.read(&mut [0; 8]);
    drop((file, dir));
    // The upper is free.
    drop(place.mount());
}

#[test]
fn a_program_that_runs_in_it_does_not_keep_it() {
    let place = Place::new();
    let union = place.mount();
    let mut program = Command::new("sleep")
        .arg("1000")
        .current_dir(union.join("d"))
        .spawn()
        .unwrap();
    drop(union);
    assert!(!is_mounted(&place.path("mnt")));
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn unmounting_says_what_dropping_does_not() {
    let place = Place::new();
    let union = place.mount();
    let file = File::open(union.join("f")).unwrap();
    let error = union.unmount().unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert!(error.to_string().contains("close what is open"), "{error}");
    assert!(!is_mounted(&place.path("mnt")));
    drop(file);
    place.mount().unmount().unwrap();
    assert!(!is_mounted(&place.path("mnt")));
}

/// A process between fork and exec holds copies of all that is open: that is not busy.
#[test]
fn forks_of_others_are_no_users() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = Command::new("true").status();
            }
        });
        for _ in 0..10 {
            let place = Place::new();
            let union = place.mount();
            let mut file = File::open(union.join("f")).unwrap();
            file.read_to_end(&mut Vec::new()).unwrap();
            drop(file);
            let outcome = union.unmount();
            stop.store(outcome.is_err(), std::sync::atomic::Ordering::Relaxed);
            outcome.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn written_late_is_written() {
    for open in ["open=none", "open=cached", "open=auto"] {
        let place = Place::new();
        let union = place.builder().option(open).mount(place.path("mnt"));
        let union = union.unwrap();
        let data = "x".repeat(3 << 20);
        fs::write(union.join("large"), &data).unwrap();
        drop(union);
        assert!(text(place.path("upper/large")) == data, "{open}");
    }
}

#[test]
fn nothing_holds_the_layers_afterwards() {
    let place = Place::new();
    let held = |name: &str| {
        let path = place.path(name);
        let links = fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.starts_with(&path)).count()
    };
    let union = place.mount();
    fs::write(union.join("f"), "changed").unwrap();
    drop(union);
    assert_eq!((held("upper"), held("lower")), (0, 0));
}

/// What a process cannot do that is killed, its heir does.
#[test]
fn a_killed_process_leaves_no_mount() {
    let place = Place::new();
    let mnt = place.path("mnt");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "anyone::end::mounts_and_waits"])
        .args(["--ignored", "--test-threads=1"])
        .env("UNIONFS_TEST_PLACE", place.path(""))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let soon = |what: &str, happens: &dyn Fn() -> bool| {
        let waited = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            happens()
        });
        assert!(waited, "not within ten seconds: {what}");
    };
    soon("it is mounted", &|| place.path("mounted").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    soon("it is gone", &|| !is_mounted(&mnt));
    drop(place.mount());
}

#[test]
#[ignore = "run by the test above, and killed"]
fn mounts_and_waits() {
    let place = std::path::PathBuf::from(std::env::var_os("UNIONFS_TEST_PLACE").unwrap());
    let builder = unionfs::Union::builder().lower(place.join("lower"));
    let builder = builder.upper(place.join("upper"));
    let _union = builder.mount(place.join("mnt")).unwrap();
    fs::write(place.join("mounted"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
