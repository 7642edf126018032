//! Conformance rows about lookup and readdir: 1-10, 12-17, 56-60 (see docs/FORMAT.md).
//!
//! Row 11 is left out: a lower whose whiteouts are not honoured needs the aufs option `=ro`, and
//! this mount syntax has every lower honour them.

use crate::calls::xattr_names;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

dialects! {
    fn row_01_whiteout_hides(dialect) {
        let m = Stack::of(dialect).upper(["wh(f)"]).lower(["f"]).mount();
        fails!(m.stat("f"), NOENT);
        m.assert_ls("", &[]);
        m.assert_upper(["wh(f)"]);
    }

    fn row_02_whiteout_hides_only_what_is_below(dialect) {
        let m = Stack::of(dialect).lower(["f=1"]).lower(["wh(f)"]).lower(["f=3"]).mount();
        m.assert_file("f", "1");
        m.assert_upper([""; 0]);
    }

    fn row_03_unlink_over_a_lower_whiteout(dialect) {
        let m = Stack::of(dialect).upper(["f=u"]).lower(["wh(f)"]).lower(["f=2"]).mount();
        m.assert_file("f", "u");
        m.unlink("f").unwrap();
        fails!(m.stat("f"), NOENT);
        m.assert_upper([""; 0]);
    }

    fn row_04_whiteout_in_a_middle_layer(dialect) {
        let m = Stack::of(dialect).lower(["wh(f)"]).lower(["f"]).mount();
        fails!(m.stat("f"), NOENT);
        m.assert_ls("", &[]);
        m.assert_upper([""; 0]);
    }

    fn row_05_opaque_directory(dialect) {
        let m = Stack::of(dialect).upper(["d/a", "opq(d)"]).lower(["d/b"]).mount();
        m.assert_ls("d", &["a"]);
        fails!(m.stat("d/b"), NOENT);
        m.assert_upper(["d/", "d/a", "opq(d)"]);
    }

    fn row_06_opaque_in_a_middle_layer(dialect) {
        let m = Stack::of(dialect)
            .upper(["d/c"])
            .lower(["d/a", "opq(d)"])
            .lower(["d/b"])
            .mount();
        m.assert_ls("d", &["a", "c"]);
        m.assert_upper(["d/", "d/c"]);
    }

    fn row_07_highest_opaque_marker_wins(dialect) {
        let m = Stack::of(dialect)
            .upper(["d/a", "opq(d)"])
            .lower(["d/b"])
            .lower(["d/c", "opq(d)"])
            .mount();
        m.assert_ls("d", &["a"]);
        m.assert_upper(["d/", "d/a", "opq(d)"]);
    }

    fn row_08_whiteout_of_a_directory(dialect) {
        let m = Stack::of(dialect).upper(["wh(d)"]).lower(["d/x"]).mount();
        fails!(m.stat("d/x"), NOENT);
        m.assert_upper(["wh(d)"]);
    }

    fn row_09_types_differ_between_layers(dialect) {
        let m = Stack::of(dialect).upper(["f", "d/a"]).lower(["f/x", "d"]).mount();
        fails!(m.stat("f/x"), NOTDIR);
        m.assert_ls("d", &["a"]);
        m.assert_upper(["d/", "d/a", "f"]);
    }

    /// A non-directory ends the merge.
    fn row_10_file_between_two_directories(dialect) {
        let m = Stack::of(dialect).upper(["d/a"]).lower(["d"]).lower(["d/b"]).mount();
        m.assert_ls("d", &["a"]);
        m.assert_upper(["d/", "d/a"]);
    }

    /// The opaque marker of a layer's root counts.
    fn row_14_opaque_root(dialect) {
        let m = Stack::of(dialect).lower(["opq()", "a"]).lower(["b"]).mount();
        m.assert_ls("", &["a"]);
        fails!(m.stat("b"), NOENT);
        m.assert_upper([""; 0]);
    }

    fn row_17_metadata_is_not_shown(dialect) {
        let m = Stack::of(dialect)
            .upper([".wh..wh.aufs= | mode=0444", ".wh..wh.plnk/ | mode=0700", ".wh..wh.orph/"])
            .lower(["d/", "opq(d)"])
            .mount();
        m.assert_ls("", &["d"]);
        m.assert_ls("d", &[]);
        for name in [".wh..wh.plnk", ".wh..wh.aufs", "d/.wh..wh..opq"] {
            fails!(m.stat(name), NOENT);
        }
        m.assert_upper([""; 0]);
    }

    /// Leftovers of a crash are swept when the upper is mounted for writing.
    fn row_56_leftovers_in_orph(dialect) {
        let m = Stack::of(dialect)
            .upper([".wh..wh.orph/.wh..wh.f.0003=x", ".wh..wh.orph/.wh..wh.d.0001/"])
            .lower([""; 0])
            .mount();
        m.assert_ls("", &[]);
        m.assert_upper([""; 0]);
    }
}

/// A real entry beside its whiteout wins, and nothing below it takes part. Only the `.wh.` form
/// can hold both.
#[test]
fn row_12_file_beside_its_whiteout() {
    let m = Stack::new().lower(["wh(f)", "f=1"]).lower(["f=2"]).mount();
    m.assert_file("f", "1");
    m.assert_ls("", &["f"]);
    m.assert_upper([""; 0]);
}

#[test]
fn row_13_directory_beside_its_whiteout() {
    let m = Stack::new()
        .lower(["wh(d)", "d/wh(p)", "d/q"])
        .lower(["d/p", "d/r"])
        .mount();
    m.assert_ls("d", &["q"]);
    fails!(m.stat("d/p"), NOENT);
    fails!(m.stat("d/r"), NOENT);
    m.assert_upper([""; 0]);
}

#[test]
fn row_15_whiteout_of_a_wrong_type() {
    let m = Stack::new().lower([".wh.f/"]).lower(["f"]).mount();
    fails!(m.stat("f"), IO);
    m.assert_ls("", &[]);
    m.assert_upper([""; 0]);
}

/// Markers with no name are ignored.
#[test]
fn row_16_markers_without_a_name() {
    let m = Stack::new()
        .lower([".wh.=", ".wh..=", ".wh...=", "x"])
        .mount();
    m.assert_ls("", &["x"]);
    fails!(m.stat(".wh."), NOENT);
    fails!(m.stat(".wh.."), NOENT);
    m.assert_file("x", "x");
    m.assert_upper([""; 0]);
}

#[test]
fn row_57_character_devices() {
    let m = Stack::new()
        .upper(["x=u"])
        .lower(["chr(f)", "chr(x)", "chr(n,1,3)"])
        .lower(["f", "x"])
        .mount();
    fails!(m.stat("f"), NOENT);
    m.assert_file("x", "u");
    m.unlink("x").unwrap();
    m.assert_ls("", &["n"]);
    assert_eq!(m.stat("n").unwrap().st_rdev, rustix::fs::makedev(1, 3));
    m.assert_upper([""; 0]);
}

fn row_58(items: &[&str]) {
    let m = Stack::new().lower(items).lower(["d/b"]).mount();
    m.assert_ls("d", &["a"]);
    fails!(m.stat("d/b"), NOENT);
    assert_eq!(xattr_names(&m.p("d")), [""; 0]);
    let hidden = xattr::get(m.p("d"), "trusted.overlay.opaque")
        .ok()
        .flatten();
    assert_eq!(hidden, None);
    m.assert_upper([""; 0]);
}

#[test]
fn row_58_opaque_by_trusted_xattr() {
    row_58(&["d/a", "d/ | x:trusted.overlay.opaque=y"]);
}

#[test]
fn row_58_opaque_by_user_xattr() {
    row_58(&["d/a", "d/ | x:user.overlay.opaque=y"]);
}

#[test]
fn row_58_opaque_by_fuse_overlayfs_xattr() {
    row_58(&["d/a", "d/ | x:user.fuseoverlayfs.opaque=y"]);
}

#[test]
fn row_58_opaque_by_file_and_xattr() {
    row_58(&["d/a", "opq(d)", "d/ | x:trusted.overlay.opaque=y"]);
}

#[test]
fn row_59_whiteouts_by_xattr() {
    for prefix in ["trusted", "user"] {
        let m = Stack::new()
            .lower([
                format!("d/ | x:{prefix}.overlay.opaque=x"),
                format!("d/f= | x:{prefix}.overlay.whiteout=y"),
                format!("d/k=1 | x:{prefix}.overlay.whiteout=y"),
            ])
            .lower(["d/f=f2", "d/g=g2", "d/k=k2"])
            .mount();
        m.assert_ls("d", &["g", "k"]);
        fails!(m.stat("d/f"), NOENT);
        m.assert_file("d/k", "1");
        m.assert_file("d/g", "g2");
        m.assert_upper([""; 0]);
    }
}

/// What a layer refers to is found in the layers below.
#[test]
fn row_60_redirect_and_metacopy() {
    let layers = |prefix: &str| {
        Stack::new()
            .lower([
                format!("r/ | x:{prefix}.overlay.redirect=/old"),
                format!("m=0123 | mode=0600 x:{prefix}.overlay.metacopy="),
                "fine=1".to_owned(),
            ])
            .lower(["old/x", "m=data", "r/y"])
    };
    let checked = |m: &Mount| {
        m.assert_ls("r", &["x"]);
        m.assert_file("r/x", "old/x");
        m.assert_file("m", "data");
        assert_eq!(m.stat("m").unwrap().st_mode & 0o7777, 0o600);
        m.assert_file("fine", "1");
        m.assert_upper([""; 0]);
    };
    checked(&layers("trusted").mount());
    checked(&layers("user").mount_with("userxattr"));
    // Anyone may write these: followed, they would lead into others' directories.
    let m = layers("user").mount();
    refuses(&m, "r", "m");
    m.assert_file("fine", "1");
    m.assert_upper([""; 0]);
}

/// What refers to nothing, or out of the layers, is never served wrongly.
#[test]
fn row_60_malformed_records() {
    for redirect in [
        "/",
        "//old",
        "/old/",
        "/../old",
        "a/b",
        "..",
        "/.wh..wh.plnk",
        "",
    ] {
        let m = Stack::new()
            .lower([
                format!("r/ | x:trusted.overlay.redirect={redirect}"),
                "m=0123 | x:trusted.overlay.metacopy=0".to_owned(),
                "lost=0123 | x:trusted.overlay.metacopy=".to_owned(),
                "fine=1".to_owned(),
            ])
            .lower(["old/x", "m=data", "r/y"])
            .mount();
        refuses(&m, "r", "m");
        fails!(m.read("lost"), IO);
        m.assert_file("fine", "1");
        m.assert_upper([""; 0]);
    }
}

#[track_caller]
fn refuses(m: &Mount, dir: &str, file: &str) {
    let listing =
        std::fs::read_dir(m.p(dir)).and_then(|names| names.collect::<std::io::Result<Vec<_>>>());
    fails!(listing.map_err(|error| crate::calls::errno(&error)), IO);
    fails!(m.stat(&format!("{dir}/x")), IO);
    fails!(m.read(file), IO);
}
