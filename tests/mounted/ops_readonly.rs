//! Without an upper the mount is read-only.

use std::fs;

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Timespec, Timestamps};

use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::Stack;

dialects! {
    fn every_change_answers_erofs(dialect) {
        let m = Stack::of(dialect)
            .read_only()
            .lower(["f=1", "wh(g)", "d/x", "opq(d)", "s->f"])
            .lower(["g", "d/y", "h=2"])
            .mount();
        m.assert_ls("", &["d", "f", "h", "s"]);
        m.assert_ls("d", &["x"]);
        m.assert_file("h", "2");
        fails!(m.creat("n", 0o644), ROFS);
        fails!(m.open("f", OFlags::RDWR), ROFS);
        fails!(m.open("f", OFlags::WRONLY | OFlags::TRUNC), ROFS);
        fails!(m.mkdir("n"), ROFS);
        fails!(m.mknod("n", FileType::Fifo, 0o644, 0), ROFS);
        fails!(m.symlink("f", "n"), ROFS);
        fails!(m.link("f", "n"), ROFS);
        fails!(m.unlink("f"), ROFS);
        fails!(m.rmdir("d"), ROFS);
        fails!(m.rename("f", "n"), ROFS);
        fails!(m.chmod("f", 0o600), ROFS);
        fails!(m.chown("f", 1, 1), ROFS);
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        fails!(rustix::fs::utimensat(CWD, m.p("f"), &times, AtFlags::empty()), ROFS);
        let set = xattr::set(m.p("f"), "user.k", b"v");
        fails!(set.map_err(|error| crate::calls::errno(&error)), ROFS);
        let removed = xattr::remove(m.p("f"), "user.k");
        fails!(removed.map_err(|error| crate::calls::errno(&error)), ROFS);
        fails!(rustix::fs::access(m.p("f"), rustix::fs::Access::WRITE_OK), ROFS);
        let fd = m.open("f", OFlags::RDONLY).unwrap();
        fails!(rustix::fs::fchmod(&fd, rustix::fs::Mode::RWXU), ROFS);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(m.path().to_str().unwrap())).unwrap();
        assert!(line.contains(" ro"), "{line}");
    }
}

/// The mount table names the type other tools look for.
#[test]
fn mount_table_entry() {
    let m = Stack::new().lower(["f"]).mount();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(m.path().to_str().unwrap()))
        .unwrap();
    assert!(line.contains(" - fuse.unionfs "), "{line}");
    assert!(line.contains(" rw"), "{line}");
    // As root these are mount(8)'s defaults: nothing is forbidden that was not asked for.
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(!line.contains(flag), "{line}");
    }
}
