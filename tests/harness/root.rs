//! What takes root to try.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::anyone::changes::{CHANGES, change};
use crate::place::{Place, changes, is_mounted, text};

/// Only what was mounted is taken away.
#[test]
fn another_mount_at_the_place_stays() {
    let place = Place::new();
    let union = place.mount();
    rustix::mount::unmount(union.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = union.upper_changes().unwrap_err().to_string();
    assert!(error.contains("not there any more"), "{error}");
    let tmpfs = || {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", place.path("mnt"), "tmpfs", flags, None).unwrap();
    };
    tmpfs();
    fs::write(place.path("mnt/other"), "other").unwrap();
    drop(union);
    assert!(is_mounted(&place.path("mnt")));
    assert_eq!(text(place.path("mnt/other")), "other");
    rustix::mount::unmount(place.path("mnt"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Objects get owner and mode of whoever makes them, not of the thread that mounted.
#[test]
fn owners_and_modes_are_the_callers() {
    let place = Place::new();
    let root = place.path("");
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    let upper = place.path("upper");
    fs::set_permissions(&upper, Permissions::from_mode(0o777)).unwrap();
    let union = place.mount();
    let made = std::process::Command::new("setpriv")
        .args(["--reuid=1", "--regid=1", "--clear-groups", "sh", "-c"])
        .arg("umask 027; echo x > mine")
        .current_dir(union.path())
        .status()
        .unwrap();
    assert!(made.success());
    let meta = fs::metadata(union.join("mine")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1, 1, 0o640)
    );
}

/// What the kernel keeps for a while is told all the same, where it says that there is something.
#[test]
fn what_is_kept_by_the_kernel_is_told() {
    for _ in 0..10 {
        let place = Place::new();
        let builder = place.builder().option("open=none");
        let union = builder.mount(place.path("mnt")).unwrap();
        change(union.path());
        assert_eq!(changes(&union), CHANGES);
    }
}
