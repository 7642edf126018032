//! Many mounts of one process.

use std::fs;
use std::thread;

use unionfs::Union;

use crate::place::{Place, changes, is_mounted, text};

#[test]
fn mounts_in_parallel() {
    let place = Place::new();
    let place = &place;
    thread::scope(|scope| {
        for n in 0..16 {
            scope.spawn(move || {
                let (upper, mnt) = (format!("upper{n}"), format!("mnt{n}"));
                let (upper, mnt) = (place.mkdir(&upper), place.mkdir(&mnt));
                for round in 0..4 {
                    let builder = Union::builder().lower(place.path("lower")).upper(&upper);
                    let mut union = builder.mount(&mnt).unwrap();
                    let own = format!("{n} {round}");
                    fs::write(union.join("f"), &own).unwrap();
                    fs::write(union.join("d/new"), &own).unwrap();
                    thread::yield_now();
                    assert_eq!(text(union.join("f")), own);
                    assert_eq!(changes(&union), ["A d/new", "M f"]);
                    union.reset().unwrap();
                    assert_eq!(text(union.join("f")), "lower");
                }
                assert!(!is_mounted(&mnt));
            });
        }
    });
}

#[test]
fn unions_go_to_other_threads() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let place = Place::new();
    let union = place.mount();
    is_shared(&union);
    thread::scope(|scope| {
        for n in 0..8 {
            let union = &union;
            scope.spawn(move || fs::write(union.join(format!("n{n}")), "").unwrap());
        }
    });
    let union = thread::spawn(move || {
        assert_eq!(union.upper_changes().unwrap().count(), 8);
        union
    });
    drop(union.join().unwrap());
    assert!(!is_mounted(&place.path("mnt")));
}
