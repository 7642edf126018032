//! Conformance rows about rename: 39-49 (see docs/FORMAT.md).

use rustix::fs::RenameFlags;

use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::Stack;

dialects! {
    fn row_39_lower_file(dialect) {
        let mut m = Stack::of(dialect).lower(["a=1"]).mount();
        m.rename("a", "b").unwrap();
        fails!(m.stat("a"), NOENT);
        m.assert_file("b", "1");
        m.assert_upper(["b", "wh(a)"]);
        m.remount();
        m.assert_ls("", &["b"]);
        m.assert_file("b", "1");
    }

    fn row_40_upper_file_onto_a_lower_one(dialect) {
        let m = Stack::of(dialect).upper(["a=u"]).lower(["b=1"]).mount();
        m.rename("a", "b").unwrap();
        m.assert_file("b", "u");
        m.assert_ls("", &["b"]);
        m.assert_upper(["b"]);
    }

    fn row_41_onto_a_whiteout(dialect) {
        let m = Stack::of(dialect).upper(["a=u", "wh(b)"]).lower(["a", "b"]).mount();
        m.rename("a", "b").unwrap();
        fails!(m.stat("a"), NOENT);
        m.assert_file("b", "u");
        m.assert_upper(["b", "wh(a)"]);
    }

    fn row_42_file_and_directory(dialect) {
        let m = Stack::of(dialect).upper(["d/", "f"]).lower([""; 0]).mount();
        fails!(m.rename("f", "d"), ISDIR);
        fails!(m.rename("d", "f"), NOTDIR);
        m.assert_upper(["d/", "f"]);
    }

    fn row_43_flags(dialect) {
        let mut m = Stack::of(dialect).lower(["a=1", "b=2"]).mount();
        fails!(m.rename_with("a", "b", RenameFlags::NOREPLACE), EXIST);
        m.rename_with("a", "b", RenameFlags::EXCHANGE).unwrap();
        m.assert_file("a", "2");
        m.assert_file("b", "1");
        m.assert_upper(["a", "b"]);
        m.rename_with("a", "c", RenameFlags::WHITEOUT).unwrap();
        m.assert_file("c", "2");
        fails!(m.stat("a"), NOENT);
        m.assert_ls("", &["b", "c"]);
        m.remount();
        m.assert_ls("", &["b", "c"]);
        m.assert_file("b", "1");
        m.assert_file("c", "2");
        m.assert_upper(["b", "c", "wh(a)"]);
    }

    fn row_44_upper_directory(dialect) {
        let m = Stack::of(dialect).upper(["d/x"]).lower([""; 0]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("", &["e"]);
        m.assert_ls("e", &["x"]);
        m.assert_upper(["e/", "e/x"]);
    }

    /// aufs answers EXDEV here (see `truth_table_rename_modes` for that and for redirects). By
    /// default the directory is completed in the upper and moved.
    fn row_45_directory_with_lower_parts(dialect) {
        let mut m = Stack::of(dialect).lower(["d/x", "d/s/y"]).mount();
        m.rename("d", "e").unwrap();
        for _ in 0..2 {
            m.assert_ls("", &["e"]);
            m.assert_ls("e", &["s", "x"]);
            m.assert_file("e/s/y", "d/s/y");
            fails!(m.stat("d"), NOENT);
            m.assert_upper(["e/", "e/s/", "e/s/y", "e/x", "wh(d)"]);
            m.remount();
        }
        drop(m);
        let mut m = Stack::of(dialect)
            .upper(["d/a", "d/wh(c)", "d/s/z"])
            .lower(["d/b", "d/c", "d/s/y"])
            .mount();
        m.rename("d", "e").unwrap();
        for _ in 0..2 {
            m.assert_ls("e", &["a", "b", "s"]);
            m.assert_ls("e/s", &["y", "z"]);
            fails!(m.stat("d"), NOENT);
            m.assert_upper(["e/", "e/a", "e/b", "e/s/", "e/s/y", "e/s/z", "wh(d)"]);
            m.remount();
        }
    }

    fn row_46_empty_lower_directory(dialect) {
        let mut m = Stack::of(dialect).lower(["d/"]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("e", &[]);
        fails!(m.stat("d"), NOENT);
        m.assert_upper(["e/", "wh(d)"]);
        m.remount();
        m.assert_ls("", &["e"]);
    }

    fn row_47_opaque_directory(dialect) {
        let mut m = Stack::of(dialect).upper(["d/a", "opq(d)"]).lower(["d/b"]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("e", &["a"]);
        fails!(m.stat("d"), NOENT);
        m.assert_upper(["e/", "e/a", "opq(e)", "wh(d)"]);
        m.remount();
        m.assert_ls("", &["e"]);
    }

    fn row_48_directory_onto_a_whiteout(dialect) {
        let mut m = Stack::of(dialect).upper(["d/a", "wh(e)"]).lower(["e/z"]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("e", &["a"]);
        m.assert_upper(["e/", "e/a", "opq(e)"]);
        m.remount();
        m.assert_ls("e", &["a"]);
    }

    fn row_49_directory_onto_a_directory(dialect) {
        let m = Stack::of(dialect).upper(["d/a", "e/wh(z)"]).lower(["e/z"]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("e", &["a"]);
        m.assert_upper(["e/", "e/a", "opq(e)"]);
        drop(m);
        let m = Stack::of(dialect).upper(["d/a"]).lower(["e/"]).mount();
        m.rename("d", "e").unwrap();
        m.assert_ls("e", &["a"]);
        m.assert_upper(["e/", "e/a", "opq(e)"]);
        drop(m);
        let m = Stack::of(dialect).upper(["d/a"]).lower(["e/z"]).mount();
        fails!(m.rename("d", "e"), NOTEMPTY);
        m.assert_ls("", &["d", "e"]);
        m.assert_upper(["d/", "d/a"]);
    }
}
