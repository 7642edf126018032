//! Conformance rows about removal: 28-38, 55 (see docs/FORMAT.md).
//!
//! Row 27 is left out: it needs two writable layers, and there is one by design. Rows 51-54, the
//! pseudo-links, come with hard links over layers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::OFlags;

use crate::calls::contents;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::Stack;

dialects! {
    fn row_28_unlink_in_the_upper(dialect) {
        let m = Stack::of(dialect).upper(["f"]).lower([""; 0]).mount();
        m.unlink("f").unwrap();
        fails!(m.stat("f"), NOENT);
        m.assert_upper([""; 0]);
    }

    fn row_29_unlink_in_upper_and_lower(dialect) {
        let m = Stack::of(dialect).upper(["f"]).lower(["f"]).mount();
        m.unlink("f").unwrap();
        fails!(m.stat("f"), NOENT);
        m.assert_upper(["wh(f)"]);
    }

    fn row_30_unlink_in_a_lower_directory(dialect) {
        let m = Stack::of(dialect).lower(["p/f"]).mount();
        m.unlink("p/f").unwrap();
        fails!(m.stat("p/f"), NOENT);
        m.assert_ls("", &["p"]);
        m.assert_upper(["p/", "p/wh(f)"]);
    }

    fn row_31_unlink_in_an_opaque_directory(dialect) {
        let m = Stack::of(dialect).upper(["d/f", "opq(d)"]).lower(["d/f"]).mount();
        m.unlink("d/f").unwrap();
        m.assert_ls("d", &[]);
        m.assert_upper(["d/", "opq(d)"]);
    }

    fn row_34_rmdir_of_lower_directories(dialect) {
        let m = Stack::of(dialect).lower(["d/", "e/x"]).mount();
        m.rmdir("d").unwrap();
        fails!(m.rmdir("e"), NOTEMPTY);
        m.assert_ls("", &["e"]);
        m.assert_upper(["wh(d)"]);
    }

    fn row_35_rmdir_of_a_directory_with_whiteouts(dialect) {
        let m = Stack::of(dialect).upper(["d/wh(x)"]).lower(["d/x"]).mount();
        m.rmdir("d").unwrap();
        fails!(m.stat("d"), NOENT);
        m.assert_upper(["wh(d)"]);
    }

    fn row_36_rmdir_and_mkdir_of_an_opaque_directory(dialect) {
        let mut m = Stack::of(dialect).upper(["d/", "opq(d)"]).lower(["d/x"]).mount();
        m.rmdir("d").unwrap();
        m.mkdir("d").unwrap();
        m.assert_ls("d", &[]);
        m.assert_upper(["d/", "opq(d)"]);
        m.remount();
        m.assert_ls("d", &[]);
    }

    fn row_37_rmdir_of_a_directory_emptied_by_a_lower(dialect) {
        let m = Stack::of(dialect).lower(["d/wh(x)"]).lower(["d/x"]).mount();
        m.rmdir("d").unwrap();
        fails!(m.stat("d"), NOENT);
        m.assert_upper(["wh(d)"]);
    }

    /// A temporary left by a crash disappears at the mount or with its directory.
    fn row_38_rmdir_with_a_leftover(dialect) {
        let m = Stack::of(dialect)
            .upper(["p/.wh..wh.q.0001/.wh.z="])
            .lower([""; 0])
            .mount();
        m.assert_ls("p", &[]);
        m.rmdir("p").unwrap();
        fails!(m.stat("p"), NOENT);
        m.assert_upper([""; 0]);
    }

    fn row_55_removed_while_open(dialect) {
        let m = Stack::of(dialect).lower(["f=1", "d/g=1"]).mount();
        let f = m.open("f", OFlags::RDWR).unwrap();
        let g = m.open("d/g", OFlags::RDWR).unwrap();
        m.unlink("f").unwrap();
        m.unlink("d/g").unwrap();
        m.rmdir("d").unwrap();
        for fd in [&f, &g] {
            rustix::io::write(fd, b"n").unwrap();
            assert_eq!(contents(fd), b"n");
        }
        fails!(m.stat("f"), NOENT);
        fails!(m.stat("d"), NOENT);
        m.assert_ls("", &[]);
        drop((f, g));
        m.assert_upper(["wh(f)", "wh(d)"]);
    }
}

#[test]
fn row_32_whiteouts_share_an_inode() {
    let m = Stack::new().lower(["f", "g"]).mount();
    m.unlink("f").unwrap();
    m.unlink("g").unwrap();
    m.assert_ls("", &[]);
    m.assert_upper(["wh(f)", "wh(g)"]);
    let base = fs::symlink_metadata(m.up(".wh..wh.aufs")).unwrap();
    for name in [".wh.f", ".wh.g"] {
        let wh = fs::symlink_metadata(m.up(name)).unwrap();
        assert!(wh.is_file());
        assert_eq!((wh.len(), wh.mode() & 0o7777), (0, 0o444));
        assert_eq!((wh.uid(), wh.gid(), wh.ino()), (0, 0, base.ino()));
    }
    assert_eq!(base.nlink(), 3);
}

#[test]
fn row_32_whiteout_devices() {
    let m = Stack::of(Dialect::Overlay).lower(["f", "g"]).mount();
    m.unlink("f").unwrap();
    m.unlink("g").unwrap();
    m.assert_ls("", &[]);
    m.assert_upper(["wh(f)", "wh(g)"]);
    assert!(!m.up(".wh..wh.aufs").exists());
}

/// The real limit of the filesystem: ext4 allows 65000 links. On a filesystem without a limit
/// within reach the test fails rather than testing nothing.
#[test]
fn row_33_link_limit_of_the_whiteout_base() {
    let layers = Stack::new()
        .upper([".wh..wh.aufs="])
        .lower(["f", "g"])
        .build();
    let base = layers.upper_path().join(".wh..wh.aufs");
    fs::set_permissions(&base, fs::Permissions::from_mode(0o444)).unwrap();
    let links = layers.scratch().join("links");
    fs::create_dir(&links).unwrap();
    let mut count = 0;
    while fs::hard_link(&base, links.join(count.to_string())).is_ok() {
        count += 1;
        assert!(
            count < 70_000,
            "this filesystem has no link limit: run on ext4"
        );
    }
    let full = fs::metadata(&base).unwrap().ino();
    let m = layers.mount();
    m.unlink("f").unwrap();
    m.unlink("g").unwrap();
    m.assert_ls("", &[]);
    m.assert_upper(["wh(f)", "wh(g)"]);
    let inode = |name: &str| fs::symlink_metadata(m.up(name)).unwrap().ino();
    assert_ne!(inode(".wh.f"), full);
    assert_ne!(inode(".wh.g"), full);
    assert_eq!(
        inode(".wh.g"),
        inode(".wh..wh.aufs"),
        "a new base takes the next whiteouts"
    );
}
