//! Hard links, symlinks and renames beyond the conformance table.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};

use crate::calls::contents;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::Stack;

dialects! {
    fn hard_links_in_the_upper(dialect) {
        let mut m = Stack::of(dialect).upper(["a=text", "d/"]).lower(["l/"]).mount();
        m.link("a", "b").unwrap();
        m.link("b", "d/c").unwrap();
        m.link("a", "l/e").unwrap();
        fails!(m.link("a", "b"), EXIST);
        fails!(m.link("d", "x"), PERM);
        fails!(m.link("none", "x"), NOENT);
        for _ in 0..2 {
            let number = m.stat("a").unwrap().st_ino;
            for name in ["a", "b", "d/c", "l/e"] {
                let stat = m.stat(name).unwrap();
                assert_eq!((stat.st_ino, stat.st_nlink), (number, 4), "{name}");
            }
            m.remount();
        }
        // A change by one name is seen by every other, cached or not.
        let fd = m.open("d/c", OFlags::RDONLY).unwrap();
        m.write("b", "changed").unwrap();
        m.chmod("l/e", 0o640).unwrap();
        for name in ["a", "b", "d/c", "l/e"] {
            m.assert_file(name, "changed");
            assert_eq!(m.mode(name), 0o640);
        }
        assert_eq!(contents(&fd), b"changed");
        m.unlink("a").unwrap();
        m.rename("b", "bb").unwrap();
        for name in ["bb", "d/c", "l/e"] {
            assert_eq!(m.stat(name).unwrap().st_nlink, 3, "{name}");
        }
        // Renaming one name of an inode to another does nothing.
        m.rename("bb", "d/c").unwrap();
        m.assert_file("bb", "changed");
        drop(fd);
        m.remount();
        assert_eq!(m.stat("d/c").unwrap().st_nlink, 3);
    }

    fn link_to_a_lower_file(dialect) {
        let mut m = Stack::of(dialect).lower(["a=1", "d/x", "s->a"]).mount();
        let held = m.remembered(&["a"]);
        let before = m.stat("a").unwrap().st_ino;
        m.link("a", "d/c").unwrap();
        assert_eq!(m.stat("a").unwrap().st_ino, before);
        drop(held);
        for _ in 0..2 {
            let number = m.stat("a").unwrap().st_ino;
            for name in ["a", "d/c"] {
                let stat = m.stat(name).unwrap();
                assert_eq!((stat.st_ino, stat.st_nlink), (number, 2), "{name}");
                m.assert_file(name, "1");
            }
            m.remount();
        }
        m.write("d/c", "2").unwrap();
        m.assert_file("a", "2");
        m.link("s", "t").unwrap();
        assert_eq!(fs::read_link(m.p("t")).unwrap().as_os_str(), "a");
        m.unlink("a").unwrap();
        m.remount();
        fails!(m.stat("a"), NOENT);
        m.assert_file("d/c", "2");
        assert_eq!(m.stat("d/c").unwrap().st_nlink, 1);
    }

    fn link_through_a_descriptor(dialect) {
        let m = Stack::of(dialect).upper(["u=1"]).lower(["l=1"]).mount();
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDWR).unwrap();
            let to = format!("{name}2");
            rustix::fs::linkat(&fd, "", CWD, m.p(&to), AtFlags::EMPTY_PATH).unwrap();
            rustix::io::pwrite(&fd, b"2", 0).unwrap();
            m.assert_file(&to, "2");
            m.assert_file(name, "2");
        }
    }

    fn over_a_whiteout(dialect) {
        let mut m = Stack::of(dialect).upper(["u", "wh(a)"]).lower(["a", "b", "c", "d"]).mount();
        m.unlink("b").unwrap();
        m.unlink("c").unwrap();
        m.link("u", "a").unwrap();
        m.symlink("u", "b").unwrap();
        m.link("d", "c").unwrap();
        m.remount();
        m.assert_ls("", &["a", "b", "c", "d", "u"]);
        m.assert_file("a", "u");
        m.assert_file("b", "u");
        m.assert_file("c", "d");
        m.assert_upper(["a", "b", "c", "d", "u"]);
    }

    fn renamed_to_itself_and_below_itself(dialect) {
        let m = Stack::of(dialect).upper(["d/e/"]).lower(["a=1", "l/"]).mount();
        m.rename("a", "a").unwrap();
        m.assert_file("a", "1");
        fails!(m.rename("d", "d/e/x"), INVAL);
        fails!(m.rename("none", "x"), NOENT);
        fails!(m.rename("a", "none/x"), NOENT);
        fails!(m.rename("a", "a/x"), NOTDIR);
        fails!(m.rename_with("none", "a", RenameFlags::EXCHANGE), NOENT);
        fails!(m.rename_with("a", "none", RenameFlags::EXCHANGE), NOENT);
        fails!(m.rename_with("a", "d", RenameFlags::NOREPLACE), EXIST);
        fails!(m.rename_with("d", "a", RenameFlags::NOREPLACE), EXIST);
        m.assert_file("a", "1");
    }

    fn noreplace_into_a_free_or_whiteouted_name(dialect) {
        let mut m = Stack::of(dialect).upper(["u=1", "wh(w)"]).lower(["w=old", "l=2"]).mount();
        m.rename_with("u", "w", RenameFlags::NOREPLACE).unwrap();
        m.rename_with("l", "u", RenameFlags::NOREPLACE).unwrap();
        m.remount();
        m.assert_ls("", &["u", "w"]);
        m.assert_file("w", "1");
        m.assert_file("u", "2");
        m.unlink("w").unwrap();
        m.remount();
        m.assert_ls("", &["u"]);
    }

    fn exchange_of_a_file_and_an_upper_directory(dialect) {
        let mut m = Stack::of(dialect).upper(["d/x=1"]).lower(["f=2", "e/"]).mount();
        m.rename_with("f", "d", RenameFlags::EXCHANGE).unwrap();
        m.assert_file("d", "2");
        m.assert_file("f/x", "1");
        m.rename_with("f", "e", RenameFlags::EXCHANGE).unwrap();
        m.assert_file("e/x", "1");
        m.remount();
        m.assert_ls("", &["d", "e", "f"]);
        m.assert_ls("e", &["x"]);
        m.assert_ls("f", &[]);
        m.assert_file("d", "2");
    }

    /// With RENAME_WHITEOUT or without: a lower name that was moved away is gone for good.
    fn whiteout_flag_over_layers(dialect) {
        let mut m = Stack::of(dialect)
            .upper(["u=1", "both=upper"])
            .lower(["both=lower", "l=2"])
            .mount();
        for (from, to) in [("u", "u2"), ("both", "both2"), ("l", "l2")] {
            m.rename_with(from, to, RenameFlags::WHITEOUT).unwrap();
            fails!(m.stat(from), NOENT);
        }
        m.remount();
        m.assert_ls("", &["both2", "l2", "u2"]);
        m.assert_file("both2", "upper");
        // The names can be used again.
        for name in ["u", "both", "l"] {
            m.write(name, "again").unwrap();
        }
        m.remount();
        m.assert_ls("", &["both", "both2", "l", "l2", "u", "u2"]);
    }

    fn open_file_follows_a_rename(dialect) {
        let m = Stack::of(dialect).upper(["d/"]).lower(["l=old"]).mount();
        let fd = m.open("l", OFlags::RDWR).unwrap();
        m.rename("l", "d/m").unwrap();
        m.write("l", "another").unwrap();
        rustix::io::pwrite(&fd, b"NEW", 0).unwrap();
        m.assert_file("d/m", "NEW");
        m.assert_file("l", "another");
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_ino, m.stat("d/m").unwrap().st_ino);
    }

    fn directory_link_counts(dialect) {
        let m = Stack::of(dialect).upper(["d/a/"]).lower(["d/b/", "d/f"]).mount();
        // Either a true count or the 1 that says nothing: find(1) must not skip anything.
        let count = m.stat("d").unwrap().st_nlink;
        assert!(count == 1 || count == 4, "{count}");
        m.rmdir("d/b").unwrap();
        let count = m.stat("d").unwrap().st_nlink;
        assert!(count == 1 || count == 3, "{count}");
        m.mkdir("d/c").unwrap();
        m.mkdir("d/e").unwrap();
        let count = m.stat("d").unwrap().st_nlink;
        assert!(count == 1 || count == 5, "{count}");
        let owner = fs::metadata(m.up("d")).unwrap().uid();
        assert_eq!(owner, 0);
    }

    /// Symlinks of the tree are resolved by the caller's side, never by the layers.
    fn symlinks_are_not_followed_in_layers(dialect) {
        let m = Stack::of(dialect)
            .upper(["d->/etc"])
            .lower(["d/x=lower", "up->../../../../etc", "s->s2", "s2->f", "f=1"])
            .mount();
        assert_eq!(fs::read_link(m.p("d")).unwrap().as_os_str(), "/etc");
        assert!(fs::symlink_metadata(m.p("d/passwd")).is_ok());
        m.assert_file("s", "1");
        m.write("s", "2").unwrap();
        m.assert_file("f", "2");
        assert_eq!(fs::read_link(m.p("up")).unwrap().as_os_str(), "../../../../etc");
        m.chown("up", 4, 4).unwrap();
        assert_eq!(fs::read_link(m.up("up")).unwrap().as_os_str(), "../../../../etc");
        m.symlink(&"x".repeat(4095), "long").unwrap();
        assert_eq!(m.stat("long").unwrap().st_size, 4095);
        assert_eq!(fs::read_link(m.p("long")).unwrap().as_os_str().len(), 4095);
    }
}
