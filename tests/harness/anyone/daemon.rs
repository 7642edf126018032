//! Mounts that the program serves.

use std::fs::{self, File};

use crate::place::{Place, changes, is_mounted, program, text};

#[test]
fn the_program_serves_it() {
    let place = Place::new();
    let builder = place.builder().spawned(program());
    let mut union = builder.clone().mount(place.path("mnt")).unwrap();
    fs::write(union.join("f"), "changed").unwrap();
    fs::remove_dir_all(union.join("gone")).unwrap();
    fs::write(union.join("linked"), "changed").unwrap();
    let told = ["M d/linked", "M f", "D gone", "M linked"];
    assert_eq!(changes(&union), told);
    let snapshot = union.snapshot().unwrap();
    union.reset().unwrap();
    assert_eq!(changes(&union), [""; 0]);
    union.restore(&snapshot).unwrap();
    assert_eq!(changes(&union), told);
    assert_eq!(text(union.join("d/linked")), "changed");
    union.unmount().unwrap();
    assert!(!is_mounted(&place.path("mnt")));
    // Its process has ended: the upper is free.
    drop(builder.mount(place.path("mnt")).unwrap());
}

#[test]
fn the_program_s_own_words_are_told() {
    let place = Place::new();
    let builder = place.builder().lower("/nowhere/at/all").spawned(program());
    let error = builder.mount(place.path("mnt")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn what_is_open_does_not_keep_it() {
    let place = Place::new();
    let union = place.builder().spawned(program());
    let union = union.mount(place.path("mnt")).unwrap();
    let file = File::open(union.join("f")).unwrap();
    drop(union);
    assert!(!is_mounted(&place.path("mnt")));
    drop(file);
    drop(place.mount());
}
