//! Failures and delays by order.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use unionfs::{Fault, Operation, Union};

use crate::place::{Place, changes, text};

fn with(place: &Place, faults: impl IntoIterator<Item = Fault>) -> Union {
    let builder = faults
        .into_iter()
        .fold(place.builder(), |b, fault| b.fault(fault));
    builder.mount(place.path("mnt")).unwrap()
}

#[test]
fn the_nth_write_fails() {
    let place = Place::new();
    let mut union = with(&place, [Fault::fail(Operation::Write, libc::ENOSPC).nth(3)]);
    for _ in 0..2 {
        let file = OpenOptions::new().append(true).open(union.join("f"));
        let mut file = file.unwrap();
        let outcomes: Vec<_> = (0..5).map(|_| file.write_all(b"x")).collect();
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let failure = outcome.err().map(|e| e.kind());
            assert_eq!(failure, (n == 2).then_some(ErrorKind::StorageFull), "{n}");
        }
        drop(file);
        assert_eq!(text(union.join("f")), "lowerxxxx");
        // It counts anew.
        union.reset().unwrap();
    }
}

#[test]
fn a_disk_stays_full() {
    let place = Place::new();
    let faults = [
        Fault::fail(Operation::Write, libc::ENOSPC).from_nth(2),
        Fault::fail(Operation::Create, libc::ENOSPC).from_nth(3),
    ];
    let union = with(&place, faults);
    fs::write(union.join("1"), "1").unwrap();
    for _ in 0..2 {
        let error = fs::write(union.join("2"), "2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
    let error = fs::write(union.join("3"), "3").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(!union.join("3").exists());
    // Copies by the kernel are writes too.
    let mut from = fs::File::open(union.join("1")).unwrap();
    let mut to = fs::File::create(union.join("2")).unwrap();
    assert!(std::io::copy(&mut from, &mut to).is_err());
    drop((from, to));
    assert_eq!(changes(&union), ["A 1", "A 2"]);
}

/// Each kind of operation meets the fault that is meant for it.
#[test]
fn each_operation_can_fail() {
    type Act = fn(&Union) -> std::io::Result<()>;
    let acts: [(Operation, Act); 14] = [
        (Operation::Lookup, |u| fs::metadata(u.join("d/a")).map(drop)),
        (Operation::Open, |u| File::open(u.join("f")).map(drop)),
        (Operation::Read, |u| fs::read(u.join("f")).map(drop)),
        (Operation::Write, |u| fs::write(u.join("new"), "x")),
        (Operation::Create, |u| {
            File::create_new(u.join("new")).map(drop)
        }),
        (Operation::CreateDirectory, |u| {
            fs::create_dir(u.join("new"))
        }),
        (Operation::Symlink, |u| {
            std::os::unix::fs::symlink("x", u.join("new"))
        }),
        (Operation::Link, |u| {
            fs::hard_link(u.join("f"), u.join("new"))
        }),
        (Operation::Remove, |u| fs::remove_file(u.join("f"))),
        (Operation::RemoveDirectory, |u| {
            fs::remove_dir(u.join("d/sub"))
        }),
        (Operation::Rename, |u| {
            fs::rename(u.join("f"), u.join("new"))
        }),
        (Operation::List, |u| {
            fs::read_dir(u.join("d"))?.try_for_each(|entry| entry.map(drop))
        }),
        (Operation::SetAttributes, |u| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(u.join("f"), permissions)
        }),
        (Operation::Sync, |u| File::open(u.join("f"))?.sync_all()),
    ];
    for (operation, act) in acts {
        let place = Place::new();
        // A read that fails the kernel tries again, page by page.
        let union = with(&place, [Fault::fail(operation, libc::EDQUOT)]);
        let error = act(&union).expect_err(&format!("{operation:?}"));
        assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{operation:?}");
        drop(union);
        let place = Place::new();
        let union = place.mount();
        if operation != Operation::RemoveDirectory {
            act(&union).unwrap_or_else(|e| panic!("{operation:?} without a fault: {e}"));
        }
    }
}

#[test]
fn reads_are_delayed() {
    const TIME: Duration = Duration::from_millis(120);
    let place = Place::new();
    let union = with(&place, [Fault::delay(Operation::Read, TIME)]);
    let start = Instant::now();
    assert_eq!(text(union.join("f")), "lower");
    assert!(start.elapsed() >= TIME);
}

/// Delayed requests keep nobody else from being served, and end with the mount.
#[test]
fn a_delay_ends_with_the_mount() {
    let place = Place::new();
    let union = with(
        &place,
        [Fault::delay(Operation::Read, Duration::from_secs(3600))],
    );
    let readers: Vec<_> = ["f", "d/a", "same", "mode", "kind", "d/sub/x"]
        .into_iter()
        .map(|name| {
            let mut file = File::open(union.join(name)).unwrap();
            std::thread::spawn(move || {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut data)
            })
        })
        .collect();
    fs::write(union.join("other"), "served").unwrap();
    assert!(union.join("gone/x").exists());
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    drop(union);
    for reader in readers {
        // Data or an error, but an answer.
        let _ = reader.join().unwrap();
    }
}

/// What is on its way is written at the end, however slow that was to be.
#[test]
fn a_delay_does_not_hold_up_the_end() {
    let place = Place::new();
    let slow = Fault::delay(Operation::Write, Duration::from_secs(3600));
    let union = with(&place, [slow]);
    let late = union.join("late");
    let writer = std::thread::spawn(move || fs::write(late, "late"));
    while !place.path("upper/late").exists() {
        std::thread::yield_now();
    }
    drop(union);
    writer.join().unwrap().unwrap();
    assert_eq!(text(place.path("upper/late")), "late");
}

/// A test that only finds the union busy goes on with its delays.
#[test]
fn delays_go_on_after_a_reset_that_was_refused() {
    const TIME: Duration = Duration::from_millis(100);
    let place = Place::new();
    let mut union = with(&place, [Fault::delay(Operation::CreateDirectory, TIME)]);
    let file = File::open(union.join("f")).unwrap();
    assert!(union.reset().unwrap_err().is_busy());
    let start = Instant::now();
    fs::create_dir(union.join("new")).unwrap();
    assert!(start.elapsed() >= TIME);
    drop(file);
}
