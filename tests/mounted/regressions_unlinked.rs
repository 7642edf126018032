//! Defects seen in other union filesystems: files and directories that are gone by name while
//! somebody has them open.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use crate::calls::{Caller, contents};
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// Everything a descriptor can do when no name is left.
fn works_without_a_name(fd: &OwnedFd, writable: bool) {
    let stat = rustix::fs::fstat(fd).unwrap();
    assert_eq!((stat.st_nlink, stat.st_size), (0, 8));
    assert_eq!(contents(fd), b"old data");
    rustix::fs::fchmod(fd, Mode::from_raw_mode(0o751)).unwrap();
    rustix::fs::fchown(fd, Some(Uid::from_raw(17)), Some(Gid::from_raw(18))).unwrap();
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 7 };
    let times = Timestamps {
        last_access: time(11),
        last_modification: time(12),
    };
    rustix::fs::futimens(fd, &times).unwrap();
    rustix::fs::fsetxattr(fd, "user.k", b"v", XattrFlags::empty()).unwrap();
    let mut value = [0; 8];
    assert_eq!(rustix::fs::fgetxattr(fd, "user.k", &mut value), Ok(1));
    let stat = rustix::fs::fstat(fd).unwrap();
    assert_eq!(
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid),
        (0o751, 17, 18)
    );
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (12, 7));
    assert_eq!(stat.st_nlink, 0);
    if writable {
        rustix::io::pwrite(fd, b"new", 0).unwrap();
        assert_eq!(contents(fd), b"new data");
        rustix::fs::ftruncate(fd, 5).unwrap();
        assert_eq!(contents(fd), b"new d");
        assert_eq!(rustix::fs::fstat(fd).unwrap().st_size, 5);
        rustix::io::pwrite(fd, b"!", 9).unwrap();
        assert_eq!(contents(fd), b"new d\0\0\0\0!");
    } else {
        assert_eq!(contents(fd), b"old data");
    }
    rustix::fs::fsync(fd).unwrap();
    rustix::fs::fdatasync(fd).unwrap();
    rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(rustix::fs::fstat(fd).unwrap().st_nlink, 0);
}

/// `gone` takes the name `d/f` away; both origins and both ways to open are tried.
fn every_origin(dialect: Dialect, gone: impl Fn(&Mount)) {
    let items = ["d/f=old data"];
    for lower in [true, false] {
        for flags in [OFlags::RDONLY, OFlags::RDWR] {
            let stack = Stack::of(dialect);
            let m = if lower {
                stack.lower(items).mount()
            } else {
                stack.upper(items).lower([""; 0]).mount()
            };
            let fd = m.open("d/f", flags).unwrap();
            gone(&m);
            works_without_a_name(&fd, flags.contains(OFlags::RDWR));
            drop(fd);
        }
    }
}

dialects! {
    fn unlinked_while_open(dialect) {
        every_origin(dialect, |m| {
            m.unlink("d/f").unwrap();
            fails!(m.stat("d/f"), NOENT);
        });
    }

    fn renamed_over_while_open(dialect) {
        every_origin(dialect, |m| {
            m.write("new", "other").unwrap();
            m.rename("new", "d/f").unwrap();
            m.assert_file("d/f", "other");
        });
    }

    fn renamed_then_unlinked_while_open(dialect) {
        every_origin(dialect, |m| {
            m.rename("d/f", "g").unwrap();
            m.unlink("g").unwrap();
        });
    }

    fn unlinked_with_its_directory_while_open(dialect) {
        every_origin(dialect, |m| {
            m.unlink("d/f").unwrap();
            m.rmdir("d").unwrap();
            m.mkdir("d").unwrap();
            m.write("d/f", "another").unwrap();
        });
    }

    fn unlinked_and_made_again_while_open(dialect) {
        every_origin(dialect, |m| {
            m.unlink("d/f").unwrap();
            m.write("d/f", "another file").unwrap();
            m.chmod("d/f", 0o600).unwrap();
        });
    }

    fn made_and_unlinked_while_open(dialect) {
        let m = Stack::of(dialect).lower(["x"]).mount();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let fd = m.open("f", flags).unwrap();
        m.unlink("f").unwrap();
        rustix::io::write(&fd, b"old data").unwrap();
        works_without_a_name(&fd, true);
        drop(fd);
        m.assert_upper([""; 0]);
    }

    /// Two descriptors of one lost file are one file.
    fn two_descriptors_of_an_unlinked_file(dialect) {
        let m = Stack::of(dialect).lower(["f=old data"]).mount();
        let one = m.open("f", OFlags::RDWR).unwrap();
        let two = m.open("f", OFlags::RDWR).unwrap();
        m.unlink("f").unwrap();
        rustix::io::pwrite(&one, b"new", 0).unwrap();
        assert_eq!(contents(&two), b"new data");
        rustix::fs::ftruncate(&two, 3).unwrap();
        assert_eq!(rustix::fs::fstat(&one).unwrap().st_size, 3);
        drop(one);
        assert_eq!(contents(&two), b"new");
    }

    fn reopened_through_proc(dialect) {
        let m = Stack::of(dialect).upper(["u=old data"]).lower(["l=old data"]).mount();
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDWR).unwrap();
            m.unlink(name).unwrap();
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let again = crate::process::open_file(&path, OFlags::RDWR, Mode::empty()).unwrap();
            rustix::io::pwrite(&again, b"NEW", 0).unwrap();
            assert_eq!(contents(&fd), b"NEW data", "{name}");
        }
    }

    fn link_count_with_a_name_left(dialect) {
        let m = Stack::of(dialect).upper(["f=old data"]).lower([""; 0]).mount();
        m.link("f", "g").unwrap();
        let fd = m.open("f", OFlags::RDWR).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 2);
        m.unlink("f").unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 1);
        assert_eq!(m.stat("g").unwrap().st_nlink, 1);
        rustix::io::pwrite(&fd, b"new", 0).unwrap();
        m.assert_file("g", "new data");
        m.unlink("g").unwrap();
        works_after_last(&fd);
    }

    fn directory_removed_while_open(dialect) {
        let m = Stack::of(dialect).upper(["u/"]).lower(["l/", "b/x"]).mount();
        m.unlink("b/x").unwrap();
        for name in ["u", "l", "b"] {
            let fd = m.open(name, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            m.rmdir(name).unwrap();
            let stat = rustix::fs::fstat(&fd).unwrap();
            assert_eq!(stat.st_nlink, 0, "{name}");
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let made = crate::process::open_file_at(&fd, "n", flags, Mode::RWXU);
            fails!(made, NOENT);
            fails!(rustix::fs::mkdirat(&fd, "n", Mode::RWXU), NOENT);
            let names: Vec<_> = rustix::fs::Dir::read_from(&fd)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_owned())
                .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
                .collect();
            assert!(names.is_empty(), "{names:?}");
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o711)).unwrap();
            rustix::fs::fsync(&fd).unwrap();
            let mode = rustix::fs::fstat(&fd).unwrap().st_mode & 0o7777;
            assert_eq!(mode, 0o711, "{name}");
        }
        m.assert_upper(["wh(b)", "wh(l)"]);
    }

    fn directory_removed_while_it_is_the_working_directory(dialect) {
        let m = Stack::of(dialect).upper(["u/"]).lower(["l/", "keep"]).mount();
        for name in ["u", "l"] {
            Caller::root().call(|| {
                rustix::process::chdir(m.p(name)).unwrap();
                m.rmdir(name).unwrap();
                assert_eq!(rustix::fs::stat(".").unwrap().st_nlink, 0);
                fails!(crate::process::open_file("n", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU), NOENT);
                fails!(rustix::fs::stat("n"), NOENT);
                rustix::fs::stat("../keep").unwrap();
                // A new directory of the same name is another one.
                m.mkdir(name).unwrap();
                m.write(&format!("{name}/f"), "f").unwrap();
                fails!(rustix::fs::stat("f"), NOENT);
            });
        }
    }

    fn directory_renamed_over_while_open(dialect) {
        let m = Stack::of(dialect).upper(["n/", "e/", "n2/"]).lower(["l/"]).mount();
        for (new, old) in [("n", "e"), ("n2", "l")] {
            let fd = m.open(old, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            m.rename(new, old).unwrap();
            assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0, "{old}");
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o700)).unwrap();
            assert_eq!(m.mode(old), 0o755);
        }
    }
}

fn works_after_last(fd: &OwnedFd) {
    assert_eq!(rustix::fs::fstat(fd).unwrap().st_nlink, 0);
    assert_eq!(contents(fd), b"new data");
    rustix::fs::ftruncate(fd, 0).unwrap();
    rustix::fs::fchmod(fd, Mode::RWXU).unwrap();
}
