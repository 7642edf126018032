//! `upper_changes` and `reset`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use unionfs::{ChangeKind, Union};

use crate::place::{Place, changes, names, text};

/// One change of each kind, and some that are none.
pub fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("new"), "new").unwrap();
    fs::create_dir_all(at("made/in")).unwrap();
    fs::write(at("f"), "other").unwrap();
    fs::set_permissions(at("mode"), Permissions::from_mode(0o640)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let file = OpenOptions::new().write(true).open(at("d/a")).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    fs::set_permissions(at("d/sub"), Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::remove_dir_all(at("replaced")).unwrap();
    fs::create_dir(at("replaced")).unwrap();
    fs::write(at("replaced/z"), "z").unwrap();
    fs::remove_file(at("kind")).unwrap();
    fs::create_dir(at("kind")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("same", at("link")).unwrap();
    // Copied up and not changed.
    drop(OpenOptions::new().append(true).open(at("same")).unwrap());
}

pub const CHANGES: [&str; 12] = [
    "m d/a",
    "m d/sub",
    "M f",
    "D gone",
    "M kind",
    "M link",
    "A made",
    "A made/in",
    "m mode",
    "A new",
    "O replaced",
    "A replaced/z",
];

#[test]
fn every_kind_of_change_is_told() {
    for form in ["whiteout=aufs", "whiteout=overlay"] {
        for open in ["open=auto", "open=cached"] {
            let place = Place::new();
            let builder = place.builder().option(form).option(open);
            let union = builder.mount(place.path("mnt")).unwrap();
            assert_eq!(changes(&union), [""; 0]);
            change(union.path());
            assert_eq!(changes(&union), CHANGES, "{form} {open}");
        }
    }
}

#[test]
fn changes_are_values() {
    let place = Place::new();
    let union = place.mount();
    fs::write(union.join("d/n"), "").unwrap();
    fs::remove_file(union.join("f")).unwrap();
    let mut changes = union.upper_changes().unwrap();
    assert_eq!(changes.len(), 2);
    let last = changes.next_back().unwrap();
    assert_eq!(
        (last.path(), last.kind()),
        (Path::new("f"), ChangeKind::Deleted)
    );
    let first = changes.next().unwrap();
    assert_eq!(
        (first.path(), first.kind()),
        (Path::new("d/n"), ChangeKind::Added)
    );
    assert_eq!(changes.next(), None);
}

/// What is in the kernel only is told too.
#[test]
fn what_is_being_written_is_told() {
    let place = Place::new();
    let union = place.mount();
    let mut file = File::options()
        .append(true)
        .open(union.join("same"))
        .unwrap();
    std::io::Write::write_all(&mut file, b"more").unwrap();
    assert_eq!(changes(&union), ["M same"]);
}

#[test]
fn names_of_one_file_change_together() {
    let place = Place::new();
    let union = place.mount();
    fs::write(union.join("linked"), "changed").unwrap();
    assert_eq!(text(union.join("d/linked")), "changed");
    assert_eq!(changes(&union), ["M d/linked", "M linked"]);
}

#[test]
fn a_read_only_union_has_no_changes() {
    let place = Place::new();
    let builder = Union::builder().lower(place.path("lower"));
    let mut union = builder.mount(place.path("mnt")).unwrap();
    assert_eq!(changes(&union), [""; 0]);
    let error = fs::write(union.join("f"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for error in [union.reset().unwrap_err(), union.snapshot().unwrap_err()] {
        assert!(error.to_string().contains("read-only"), "{error}");
    }
}

#[test]
fn reset_undoes_all_of_it() {
    for form in ["whiteout=aufs", "whiteout=overlay"] {
        let place = Place::new();
        fs::set_permissions(place.path("upper"), Permissions::from_mode(0o750)).unwrap();
        let builder = place.builder().option(form);
        let mut union = builder.mount(place.path("mnt")).unwrap();
        let listing = || names(&place.path("mnt"));
        let before = listing();
        for _ in 0..3 {
            change(union.path());
            fs::set_permissions(union.path(), Permissions::from_mode(0o711)).unwrap();
            // An ordinary user may not write in it.
            fs::set_permissions(union.join("made"), Permissions::from_mode(0o555)).unwrap();
            assert_ne!(listing(), before);
            union.reset().unwrap();
            assert_eq!(listing(), before);
            assert_eq!(changes(&union), [""; 0]);
            assert_eq!(text(union.join("replaced/in/y")), "y");
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(union.path()), 0o750);
            assert_eq!(mode(&union.join("mode")), mode(&place.path("lower/mode")));
        }
        drop(union);
        let left = names(&place.path("upper"));
        assert!(
            left.iter().all(|name| name.starts_with(".wh..wh.")),
            "{left:?}"
        );
    }
}

#[test]
fn a_busy_union_is_not_reset() {
    let place = Place::new();
    let mut union = place.mount();
    fs::write(union.join("n"), "new").unwrap();
    let file = File::open(union.join("n")).unwrap();
    let error = union.reset().unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert_eq!(text(union.join("n")), "new");
    drop(file);
    // A child of another test may have it, too, until it is the program that it is to be.
    std::thread::sleep(std::time::Duration::from_secs(1));
    union.reset().unwrap();
    assert!(!union.join("n").exists());
}

#[test]
fn changes_of_before_are_not_thrown_away() {
    let place = Place::new();
    fs::write(place.path("upper/kept"), "kept").unwrap();
    let mut union = place.mount();
    assert_eq!(changes(&union), ["A kept"]);
    let error = union.reset().unwrap_err();
    assert!(error.to_string().contains("take a snapshot"), "{error}");
    assert_eq!(text(union.join("kept")), "kept");
}
