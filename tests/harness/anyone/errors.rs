//! Errors say what to do next, in one line.

use std::fs;

use unionfs::{Builder, Fault, Operation, Union};

use crate::place::{Place, is_mounted, program};

#[track_caller]
fn fails(place: &Place, builder: Builder, words: [&str; 2]) {
    let error = builder.mount(place.path("mnt")).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!is_mounted(&place.path("mnt")));
}

#[test]
fn what_is_wrong_is_said() {
    let place = Place::new();
    let fault = || Fault::fail(Operation::Read, libc::EIO);
    fails(&place, Union::builder(), ["lowerdir", "missing"]);
    let nowhere = place.path("nowhere");
    fails(
        &place,
        place.builder().lower(&nowhere),
        ["nowhere", "No such file"],
    );
    let inside = place.builder().lower(place.path("lower/d"));
    fails(&place, inside, ["overlaps", "side by side"]);
    fails(
        &place,
        place.builder().option("nonsense"),
        ["nonsense", "OPTIONS.md"],
    );
    fails(
        &place,
        place.builder().option("threads=x"),
        ["threads", "'x'"],
    );
    fails(
        &place,
        place.builder().option("supervise"),
        ["supervise", "spawned"],
    );
    fails(
        &place,
        place.builder().option("log=info"),
        ["log", "spawned"],
    );
    fails(
        &place,
        place.builder().option("remount"),
        ["remount", "leave it out"],
    );
    let passed = place.builder().option("open=passthrough").fault(fault());
    fails(&place, passed, ["passthrough", "open=cached"]);
    let spawned = place.builder().spawned(program()).fault(fault());
    fails(&place, spawned, ["this process", "leave out"]);
    fails(
        &place,
        place.builder().spawned(nowhere),
        ["nowhere", "built"],
    );
    fs::remove_dir(place.path("mnt")).unwrap();
    fails(&place, place.builder(), ["mnt", "make the directory"]);
    fs::write(place.path("mnt"), "").unwrap();
    fails(&place, place.builder(), ["mnt", "Not a directory"]);
}

#[test]
fn one_upper_serves_one_mount() {
    let place = Place::new();
    let _union = place.mount();
    let error = place.builder().mount(place.mkdir("other")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("an upper of its own"), "{text}");
}
