//! `snapshot` and `restore`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use unionfs::Union;

use crate::place::{Place, changes, names, text};

#[test]
fn a_snapshot_can_be_gone_back_to() {
    for form in ["whiteout=aufs", "whiteout=overlay"] {
        let place = Place::new();
        let builder = place.builder().option(form);
        let mut union = builder.mount(place.path("mnt")).unwrap();
        fs::write(union.join("f"), "first").unwrap();
        fs::remove_dir_all(union.join("gone")).unwrap();
        fs::remove_dir_all(union.join("replaced")).unwrap();
        fs::create_dir(union.join("replaced")).unwrap();
        // One of two names: the other one is only in a table.
        fs::write(union.join("linked"), "changed").unwrap();
        fs::set_permissions(union.join("linked"), Permissions::from_mode(0o604)).unwrap();
        let snapshot = union.snapshot().unwrap();
        let then = changes(&union);

        fs::write(union.join("f"), "second").unwrap();
        fs::create_dir(union.join("gone")).unwrap();
        fs::remove_dir(union.join("replaced")).unwrap();
        fs::write(union.join("d/linked"), "again").unwrap();
        assert_ne!(changes(&union), then);
        for _ in 0..2 {
            union.restore(&snapshot).unwrap();
            assert_eq!(changes(&union), then, "{form}");
            assert_eq!(text(union.join("f")), "first");
            assert_eq!(text(union.join("d/linked")), "changed");
            assert_eq!(names(&union.join("replaced")), [""; 0]);
            let meta = |name: &str| fs::metadata(union.join(name)).unwrap();
            assert_eq!(meta("linked").ino(), meta("d/linked").ino());
            assert_eq!(meta("linked").nlink(), 2);
            assert_eq!(meta("d/linked").mode() & 0o7777, 0o604);
        }
        // It was never changed itself, and is gone with its value.
        let path = snapshot.path().to_owned();
        assert_eq!(text(path.join("f")), "first");
        drop(snapshot);
        assert!(!path.exists());
        union.reset().unwrap();
        assert_eq!(changes(&union), [""; 0]);
    }
}

#[test]
fn a_snapshot_is_a_lower() {
    let place = Place::new();
    let union = place.mount();
    fs::write(union.join("f"), "prepared").unwrap();
    fs::remove_dir_all(union.join("gone")).unwrap();
    let snapshot = union.snapshot().unwrap();
    let others: Vec<Union> = (0..3)
        .map(|n| {
            let mnt = place.mkdir(&format!("mnt{n}"));
            let builder = Union::builder()
                .lower(&snapshot)
                .lower(place.path("lower"))
                .upper(place.mkdir(&format!("upper{n}")));
            builder.mount(mnt).unwrap()
        })
        .collect();
    for (n, other) in others.iter().enumerate() {
        assert_eq!(text(other.join("f")), "prepared");
        assert!(!other.join("gone").exists());
        fs::write(other.join("f"), format!("{n}")).unwrap();
        assert_eq!(changes(other), ["M f"]);
    }
    assert_eq!(text(union.join("f")), "prepared");
}

#[test]
fn a_snapshot_is_where_it_was_asked_to_be() {
    let place = Place::new();
    let union = place.mount();
    fs::write(union.join("n"), "n").unwrap();
    let elsewhere = place.mkdir("elsewhere");
    let snapshot = union.snapshot_in(&elsewhere).unwrap();
    assert_eq!(snapshot.path().parent(), Some(elsewhere.as_path()));
    assert_eq!(text(snapshot.path().join("n")), "n");
    let error = union.snapshot_in(place.path("nowhere")).unwrap_err();
    assert!(error.to_string().contains("snapshot_in"), "{error}");
}

/// What an upper held before its mount can be gone back to by a snapshot.
#[test]
fn a_filled_upper_is_restored() {
    let place = Place::new();
    fs::write(place.path("upper/kept"), "kept").unwrap();
    let mut union = place.mount();
    let snapshot = union.snapshot().unwrap();
    fs::remove_file(union.join("kept")).unwrap();
    fs::write(union.join("f"), "changed").unwrap();
    union.restore(&snapshot).unwrap();
    assert_eq!(changes(&union), ["A kept"]);
    assert_eq!(text(union.join("kept")), "kept");
}
