//! Defects seen in other union filesystems: removed things that come back, marks that users can
//! make, layers that a write reaches.

use std::fs;

use rustix::fs::{OFlags, RenameFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::calls::contents;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// Removes a tree by single calls, as rm -rf does.
fn remove_tree(m: &Mount, dir: &str) {
    for name in m.ls(dir) {
        let path = format!("{dir}/{name}");
        if m.p(&path).is_dir() {
            remove_tree(m, &path);
        } else {
            m.unlink(&path).unwrap();
        }
    }
    m.rmdir(dir).unwrap();
}

dialects! {
    /// The lower's own bytes are compared when the mount is dropped.
    fn write_while_a_reader_holds_the_lower_open(dialect) {
        let m = Stack::of(dialect).lower(["f=old data"]).mount();
        let reader = m.open("f", OFlags::RDONLY).unwrap();
        assert_eq!(contents(&reader), b"old data");
        let writer = m.open("f", OFlags::RDWR).unwrap();
        rustix::io::pwrite(&writer, b"new", 0).unwrap();
        m.assert_file("f", "new data");
        // Which of the two an old reader sees is up to the I/O policy, but nothing else.
        let seen = contents(&reader);
        assert!(seen == b"new data" || seen == b"old data", "{seen:?}");
        let direct = fs::read(m.layers.lowers[0].join("f")).unwrap();
        assert_eq!(direct, b"old data");
        drop((reader, writer));
        m.assert_upper(["f"]);
    }

    fn shared_mapping_written_while_a_reader_holds_the_lower_open(dialect) {
        let m = Stack::of(dialect).lower(["f=old data"]).mount();
        let reader = m.open("f", OFlags::RDONLY).unwrap();
        assert_eq!(contents(&reader), b"old data");
        let writer = m.open("f", OFlags::RDWR).unwrap();
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of 8 bytes of a file that keeps its length; written within them.
        unsafe {
            let null = std::ptr::null_mut();
            let map = rustix::mm::mmap(null, 8, flags, MapFlags::SHARED, &writer, 0).unwrap();
            map.cast::<u8>().write(b'O');
            rustix::mm::msync(map, 8, rustix::mm::MsyncFlags::SYNC).unwrap();
            rustix::mm::munmap(map, 8).unwrap();
        }
        drop(writer);
        m.assert_file("f", "Old data");
        assert_eq!(fs::read(m.up("f")).unwrap(), b"Old data");
        assert_eq!(fs::read(m.layers.lowers[0].join("f")).unwrap(), b"old data");
    }

    fn removed_tree_made_again_stays_empty(dialect) {
        let mut m = Stack::of(dialect)
            .lower(["d/a", "d/s/b", "n/d/a", "n/d/s/b"])
            .lower(["d/c", "n/d/c"])
            .mount();
        for dir in ["d", "n/d"] {
            remove_tree(&m, dir);
            m.mkdir(dir).unwrap();
            m.assert_ls(dir, &[]);
        }
        m.assert_upper(["d/", "opq(d)", "n/", "n/d/", "opq(n/d)"]);
        m.remount();
        for dir in ["d", "n/d"] {
            m.assert_ls(dir, &[]);
            fails!(m.stat(&format!("{dir}/a")), NOENT);
            m.mkdir(&format!("{dir}/s")).unwrap();
            m.assert_ls(&format!("{dir}/s"), &[]);
        }
        m.remount();
        m.assert_ls("n/d/s", &[]);
    }

    /// Here the top lower hides what is below it, and the upper must go on hiding the top lower.
    fn removed_tree_opaque_in_the_top_lower(dialect) {
        let mut m = Stack::of(dialect)
            .lower(["d/a", "opq(d)", "n/d/a", "opq(n/d)"])
            .lower(["d/b", "n/d/b"])
            .mount();
        for dir in ["d", "n/d"] {
            m.assert_ls(dir, &["a"]);
            remove_tree(&m, dir);
            m.mkdir(dir).unwrap();
            m.write(&format!("{dir}/new"), "1").unwrap();
        }
        m.remount();
        m.assert_ls("d", &["new"]);
        m.assert_ls("n/d", &["new"]);
    }

    /// The same with entries of the upper among them, twice over.
    fn removed_tree_made_again_twice(dialect) {
        let mut m = Stack::of(dialect).upper(["d/u"]).lower(["d/a", "d/s/b"]).mount();
        for _ in 0..2 {
            remove_tree(&m, "d");
            fails!(m.stat("d"), NOENT);
            m.remount();
            m.assert_ls("", &[]);
            m.mkdir("d").unwrap();
            m.assert_ls("d", &[]);
            m.write("d/a", "mine").unwrap();
            m.remount();
            m.assert_ls("d", &["a"]);
            m.assert_file("d/a", "mine");
        }
    }

    fn file_in_place_of_a_removed_directory(dialect) {
        let mut m = Stack::of(dialect).lower(["d/a"]).mount();
        remove_tree(&m, "d");
        m.write("d", "file").unwrap();
        m.remount();
        m.assert_file("d", "file");
        m.unlink("d").unwrap();
        m.remount();
        fails!(m.stat("d"), NOENT);
        m.mkdir("d").unwrap();
        m.remount();
        m.assert_ls("d", &[]);
    }

    fn moved_over_a_lower_name_then_removed(dialect) {
        let mut m = Stack::of(dialect).lower(["f=lower", "d/g=lower"]).mount();
        for name in ["f", "d/g"] {
            m.write("new", "new").unwrap();
            m.rename("new", name).unwrap();
            m.assert_file(name, "new");
            m.unlink(name).unwrap();
            fails!(m.stat(name), NOENT);
        }
        m.remount();
        fails!(m.stat("f"), NOENT);
        m.assert_ls("d", &[]);
        m.assert_upper(["wh(f)", "d/", "d/wh(g)"]);
    }

    fn lower_file_moved_away_and_back(dialect) {
        let mut m = Stack::of(dialect).lower(["f=1", "d/"]).mount();
        m.rename("f", "d/f").unwrap();
        m.remount();
        m.rename("d/f", "f").unwrap();
        m.remount();
        m.assert_file("f", "1");
        m.assert_ls("", &["d", "f"]);
        m.assert_ls("d", &[]);
    }

    fn exchange_with_a_lower(dialect) {
        let mut m = Stack::of(dialect)
            .upper(["u=upper"])
            .lower(["l=lower", "m=other", "d/x", "s->l"])
            .mount();
        m.rename_with("u", "l", RenameFlags::EXCHANGE).unwrap();
        m.assert_file("u", "lower");
        m.assert_file("l", "upper");
        m.rename_with("l", "d/x", RenameFlags::EXCHANGE).unwrap();
        m.assert_file("l", "d/x");
        m.assert_file("d/x", "upper");
        m.rename_with("m", "s", RenameFlags::EXCHANGE).unwrap();
        m.remount();
        m.assert_ls("", &["d", "l", "m", "s", "u"]);
        m.assert_file("u", "lower");
        m.assert_file("l", "d/x");
        m.assert_file("d/x", "upper");
        m.assert_file("s", "other");
        assert_eq!(fs::read_link(m.p("m")).unwrap().as_os_str(), "l");
        for name in ["u", "l", "m", "s", "d/x"] {
            m.unlink(name).unwrap();
        }
        m.remount();
        m.assert_ls("", &["d"]);
        m.assert_ls("d", &[]);
        m.assert_upper(["d/", "d/wh(x)", "wh(l)", "wh(m)", "wh(s)"]);
    }

    fn users_cannot_make_marks(dialect) {
        let mut m = Stack::of(dialect).lower(["f", "d/g"]).mount();
        fails!(m.creat(".wh.f", 0o644), PERM);
        fails!(m.creat("d/.wh..wh..opq", 0o644), PERM);
        // An overlay mark given by a user must never take effect either.
        let _ = xattr::set(m.p("d"), "trusted.overlay.opaque", b"y");
        let _ = xattr::set(m.p("d"), "user.overlay.opaque", b"y");
        let _ = m.mknod("f2", rustix::fs::FileType::CharacterDevice, 0o600, 0);
        m.assert_file("f", "f");
        m.remount();
        m.assert_file("f", "f");
        m.assert_ls("d", &["g"]);
    }
}

/// An upper may be written in one dialect today and in the other tomorrow.
#[test]
fn dialect_changes_between_mounts() {
    let mut m = Stack::new()
        .lower(["f", "g", "d/x", "e/x"])
        .mount_with("whiteout=overlay");
    m.unlink("f").unwrap();
    remove_tree(&m, "d");
    m.mkdir("d").unwrap();
    m.assert_upper(["chr(f)", "d/", "xopq(d)"]);
    m.unmount();
    m.mount_again_with("whiteout=aufs");
    m.assert_ls("", &["d", "e", "g"]);
    m.assert_ls("d", &[]);
    m.unlink("g").unwrap();
    m.write("f", "again").unwrap();
    m.rmdir("d").unwrap();
    remove_tree(&m, "e");
    m.mkdir("e").unwrap();
    m.assert_upper(["e/", "f", "opq(e)", "wh(d)", "wh(g)"]);
    m.unmount();
    m.mount_again_with("whiteout=overlay");
    m.assert_ls("", &["e", "f"]);
    m.write("g", "again").unwrap();
    m.mkdir("d").unwrap();
    m.assert_ls("d", &[]);
    m.assert_ls("e", &[]);
    m.assert_upper(["d/", "e/", "f", "g", "opq(e)", "xopq(d)"]);
}
