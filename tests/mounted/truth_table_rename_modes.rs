//! Conformance rows 45-49 about directories, with `rename_dir=redirect` and `exdev`, and exchanges
//! of directories in each mode. The default is in `truth_table_rename`.

use rustix::fs::RenameFlags;

use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const REDIRECT: &str = "rename_dir=redirect";
const MODES: [&str; 2] = ["rename_dir=copy", REDIRECT];

/// What a redirected rename leaves for the old name, in the notation of `assert_upper`: always a
/// device, as a whiteout file beside the directory would hide what it leads to.
fn gone(dialect: Dialect, name: &str) -> String {
    let verb = if dialect.writes_overlay() {
        "wh"
    } else {
        "chr"
    };
    format!("{verb}({name})")
}

fn redirect(m: &Mount, name: &str) -> Option<String> {
    let value = xattr::get(m.up(name), "trusted.overlay.redirect").unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

dialects! {
    fn row_45_redirected(dialect) {
        let mut m = Stack::of(dialect).lower(["d/x", "d/s/y"]).mount_with(REDIRECT);
        m.rename("d", "e").unwrap();
        for _ in 0..2 {
            m.assert_ls("", &["e"]);
            m.assert_ls("e", &["s", "x"]);
            m.assert_file("e/s/y", "d/s/y");
            fails!(m.stat("d"), NOENT);
            m.assert_upper(["e/".to_owned(), gone(dialect, "d")]);
            assert_eq!(redirect(&m, "e").as_deref(), Some("d"));
            m.remount();
        }
        drop(m);
        let mut m = Stack::of(dialect)
            .upper(["d/a", "t/"])
            .lower(["d/b"])
            .mount_with(REDIRECT);
        m.rename("d", "t/e").unwrap();
        for _ in 0..2 {
            m.assert_ls("", &["t"]);
            m.assert_ls("t/e", &["a", "b"]);
            assert_eq!(redirect(&m, "t/e").as_deref(), Some("/d"));
            m.remount();
        }
        m.rename("t/e", "d").unwrap();
        for _ in 0..2 {
            m.assert_ls("d", &["a", "b"]);
            m.assert_ls("t", &[]);
            m.remount();
        }
    }

    fn row_45_refused(dialect) {
        let m = Stack::of(dialect).lower(["d/x"]).mount_with("rename_dir=exdev");
        fails!(m.rename("d", "e"), XDEV);
        m.assert_ls("", &["d"]);
        m.assert_ls("d", &["x"]);
        m.assert_upper([""; 0]);
        drop(m);
        let m = Stack::of(dialect)
            .upper(["d/a"])
            .lower(["d/b"])
            .mount_with("rename_dir=exdev");
        fails!(m.rename("d", "e"), XDEV);
        m.assert_ls("d", &["a", "b"]);
        fails!(m.stat("e"), NOENT);
        m.assert_upper(["d/", "d/a"]);
    }

    /// Nothing of the lowers shows in these: they move alike in every mode.
    fn rows_46_to_49_in_the_other_modes(dialect) {
        for mode in [REDIRECT, "rename_dir=exdev"] {
            let m = Stack::of(dialect).lower(["d/"]).mount_with(mode);
            m.rename("d", "e").unwrap();
            m.assert_upper(["e/", "wh(d)"]);
            drop(m);
            let m = Stack::of(dialect)
                .upper(["d/a", "opq(d)"])
                .lower(["d/b"])
                .mount_with(mode);
            m.rename("d", "e").unwrap();
            m.assert_upper(["e/", "e/a", "opq(e)", "wh(d)"]);
            drop(m);
            let m = Stack::of(dialect)
                .upper(["d/a", "wh(e)"])
                .lower(["e/z"])
                .mount_with(mode);
            m.rename("d", "e").unwrap();
            m.assert_upper(["e/", "e/a", "opq(e)"]);
            drop(m);
            let m = Stack::of(dialect)
                .upper(["d/a", "e/wh(z)"])
                .lower(["e/z"])
                .mount_with(mode);
            m.rename("d", "e").unwrap();
            m.assert_upper(["e/", "e/a", "opq(e)"]);
            drop(m);
            let m = Stack::of(dialect).upper(["d/a"]).lower(["e/z"]).mount_with(mode);
            fails!(m.rename("d", "e"), NOTEMPTY);
            m.assert_upper(["d/", "d/a"]);
        }
    }

    /// Rows 48 and 49 with a directory of a lower as source: what was at the target does not show.
    fn onto_a_whiteout_and_onto_an_empty_directory(dialect) {
        for mode in MODES {
            let mut m = Stack::of(dialect)
                .upper(["wh(e)"])
                .lower(["d/x", "e/z", "f/", "wh(g)"])
                .lower(["d/y", "f/", "g/z"])
                .mount_with(mode);
            m.rename("d", "e").unwrap();
            for _ in 0..2 {
                m.assert_ls("", &["e", "f"]);
                m.assert_ls("e", &["x", "y"]);
                m.remount();
            }
            m.rename("e", "f").unwrap();
            for _ in 0..2 {
                m.assert_ls("", &["f"]);
                m.assert_ls("f", &["x", "y"]);
                m.remount();
            }
            m.rename("f", "g").unwrap();
            m.mkdir("d").unwrap();
            for _ in 0..2 {
                m.assert_ls("", &["d", "g"]);
                m.assert_ls("d", &[]);
                m.assert_ls("g", &["x", "y"]);
                m.remount();
            }
        }
    }

    fn exchange_of_directories(dialect) {
        for mode in MODES {
            let mut m = Stack::of(dialect)
                .upper(["b/u", "p/"])
                .lower(["a/x", "a/s/t", "b/y", "f=file"])
                .lower(["a/z"])
                .mount_with(mode);
            m.rename_with("a", "b", RenameFlags::EXCHANGE).unwrap();
            for _ in 0..2 {
                m.assert_ls("a", &["u", "y"]);
                m.assert_ls("b", &["s", "x", "z"]);
                m.remount();
            }
            m.rename_with("b", "f", RenameFlags::EXCHANGE).unwrap();
            m.rename_with("a", "p", RenameFlags::EXCHANGE).unwrap();
            for _ in 0..2 {
                m.assert_file("b", "file");
                m.assert_ls("f", &["s", "x", "z"]);
                m.assert_ls("f/s", &["t"]);
                m.assert_ls("a", &[]);
                m.assert_ls("p", &["u", "y"]);
                m.remount();
            }
            fails!(m.rename_with("f", "p", RenameFlags::NOREPLACE), EXIST);
            m.rename_with("f", "n", RenameFlags::NOREPLACE).unwrap();
            m.assert_ls("n/s", &["t"]);
        }
        let m = Stack::of(dialect)
            .lower(["a/x", "b/y"])
            .mount_with("rename_dir=exdev");
        fails!(m.rename_with("a", "b", RenameFlags::EXCHANGE), XDEV);
        m.assert_upper([""; 0]);
    }

    /// A directory below a moved one is found through both, whichever moved first.
    fn moves_within_moves(dialect) {
        for mode in MODES {
            let mut m = Stack::of(dialect)
                .lower(["a/b/c/f", "a/k"])
                .lower(["a/b/g", "a/b/c/h", "z/"])
                .mount_with(mode);
            m.rename("a/b/c", "a/b/d").unwrap();
            m.rename("a/b", "z/b").unwrap();
            m.rename("z/b/d", "a/c").unwrap();
            m.rename("z", "y").unwrap();
            m.write("y/b/new", "n").unwrap();
            for _ in 0..2 {
                m.assert_ls("", &["a", "y"]);
                m.assert_ls("a", &["c", "k"]);
                m.assert_ls("a/c", &["f", "h"]);
                m.assert_ls("y/b", &["g", "new"]);
                m.remount();
            }
            m.unlink("a/c/f").unwrap();
            m.rename("a", "y/a").unwrap();
            for _ in 0..2 {
                m.assert_ls("y/a/c", &["h"]);
                m.assert_file("y/a/c/h", "a/b/c/h");
                m.remount();
            }
        }
    }
}

/// What one mode wrote, the other finds; the result of `copy` needs no records.
#[test]
fn modes_take_over_from_each_other() {
    let mut m = Stack::new()
        .lower(["d/x", "d/s/y", "d/s/z"])
        .mount_with(REDIRECT);
    m.rename("d/s", "d/t").unwrap();
    m.rename("d", "e").unwrap();
    m.unlink("e/t/z").unwrap();
    m.unmount();
    m.mount_again_with("rename_dir=copy");
    m.rename("e", "f").unwrap();
    for _ in 0..2 {
        m.assert_ls("", &["f"]);
        m.assert_ls("f", &["t", "x"]);
        m.assert_ls("f/t", &["y"]);
        m.remount();
    }
    assert_eq!(redirect(&m, "f"), None);
    assert_eq!(redirect(&m, "f/t"), None);
    assert!(m.up("f/t/y").exists() && m.up("f/x").exists());
}

/// A directory that led elsewhere and of which nothing is left there moves without that.
#[test]
fn a_redirect_ends_with_what_it_leads_to() {
    for mode in ["rename_dir=redirect", "rename_dir=copy", "rename_dir=exdev"] {
        let mut m = Stack::new().lower(["d/x"]).mount_with(REDIRECT);
        m.rename("d", "e").unwrap();
        m.unmount();
        m.mount_again_with(mode);
        // Now the upper has all of it.
        m.write("e/x", "new").unwrap();
        m.rename("e", "f").unwrap();
        m.rename("f/x", "y").unwrap();
        for _ in 0..2 {
            m.assert_ls("", &["f", "y"]);
            m.assert_ls("f", &[]);
            m.remount();
        }
        m.rmdir("f").unwrap();
    }
}

/// The whiteout that a directory changes places with hides at its new place too.
#[test]
fn onto_a_whiteout_by_attribute() {
    for mode in ["rename_dir=redirect", "rename_dir=copy"] {
        let mut m = Stack::new()
            .upper([
                "d/ | x:trusted.overlay.opaque=x",
                "d/w= | x:trusted.overlay.whiteout=",
            ])
            .lower(["d/w", "e/y"])
            .mount_with(mode);
        m.assert_ls("d", &[]);
        m.rename("e", "d/w").unwrap();
        for _ in 0..2 {
            m.assert_ls("", &["d"]);
            m.assert_ls("d/w", &["y"]);
            m.remount();
        }
    }
}
