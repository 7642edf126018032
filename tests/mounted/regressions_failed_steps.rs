//! Defects found in our own code: changes that fail half-way, and objects without a name.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{IFlags, OFlags, RenameFlags};

use crate::calls::Caller;
use crate::dialects;
use crate::fails;
use crate::process::{opens_unseen, wait_for};
use crate::spec::Dialect;
use crate::support::Stack;

/// Keeps a directory or file of the upper from being changed, until dropped.
struct Frozen(std::os::fd::OwnedFd);

impl Frozen {
    fn new(path: &Path, flag: IFlags) -> Self {
        let fd =
            crate::process::open_file(path, OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let flags = rustix::fs::ioctl_getflags(&fd).unwrap();
        rustix::fs::ioctl_setflags(&fd, flags | flag)
            .unwrap_or_else(|e| panic!("{}: needs a filesystem with chattr: {e}", path.display()));
        Self(fd)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let flags = rustix::fs::ioctl_getflags(&self.0).unwrap();
        let flags = flags.difference(IFlags::IMMUTABLE | IFlags::APPEND);
        rustix::fs::ioctl_setflags(&self.0, flags).unwrap();
    }
}

dialects! {
    /// The layers of the moved directory must not be forgotten before the rename is done.
    fn failed_rename_of_a_directory(dialect) {
        let mut m = Stack::of(dialect).upper(["t/f"]).lower(["d/x=old"]).mount();
        m.unlink("d/x").unwrap();
        let frozen = Frozen::new(&m.up("t"), IFlags::IMMUTABLE);
        fails!(m.rename("d", "t/d"), PERM);
        drop(frozen);
        m.write("d/x", "new").unwrap();
        m.unlink("d/x").unwrap();
        m.remount();
        m.assert_ls("d", &[]);
    }

    /// xfstests generic/079: what says that it cannot be changed comes before what it holds.
    fn full_directory_of_a_frozen_one(dialect) {
        let m = Stack::of(dialect)
            .upper(["i/d/f", "i/e/", "a/d/f", "a/e/", "v/f", "e/", "s/f"])
            .lower(["i/d/low", "s/low"])
            .mount();
        for (path, held, flag) in
            [("i/d", "i", IFlags::IMMUTABLE), ("a/d", "a", IFlags::APPEND), ("v", "v", IFlags::APPEND)]
        {
            let frozen = Frozen::new(&m.up(held), flag);
            fails!(m.rmdir(path), PERM);
            fails!(m.rename("e", path), PERM);
            fails!(m.rename("s", path), PERM);
            drop(frozen);
            fails!(m.rmdir(path), NOTEMPTY);
            fails!(m.rename("e", path), NOTEMPTY);
            fails!(m.rename("s", path), NOTEMPTY);
        }
        for (dir, flag) in [("i", IFlags::IMMUTABLE), ("a", IFlags::APPEND)] {
            let frozen = Frozen::new(&m.up(dir), flag);
            fails!(m.rename(&format!("{dir}/e"), "v"), PERM);
            fails!(m.rename(&format!("{dir}/d"), "v"), PERM);
            drop(frozen);
            fails!(m.rename(&format!("{dir}/e"), "v"), NOTEMPTY);
            fails!(m.rename(&format!("{dir}/d"), "v"), NOTEMPTY);
        }
    }

    /// The victim was already exchanged for a clean one when the rename failed.
    fn failed_rename_onto_an_empty_directory(dialect) {
        let mut m = Stack::of(dialect).upper(["s/"]).lower(["v/x=old"]).mount();
        m.unlink("v/x").unwrap();
        let held = m.open("v", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let frozen = Frozen::new(&m.up("s"), IFlags::IMMUTABLE);
        fails!(m.rename("s", "v"), PERM);
        drop(frozen);
        m.assert_ls("v", &[]);
        m.rmdir("v").unwrap();
        assert_eq!(rustix::fs::fstat(&held).unwrap().st_nlink, 0);
        drop(held);
        m.remount();
        m.assert_ls("", &["s"]);
    }

    /// What is wrong with the target comes before what the union cannot do.
    fn moving_a_lower_directory_onto_something(dialect) {
        for mode in ["copy", "redirect", "exdev"] {
            let m = Stack::of(dialect)
                .lower(["d/x", "full/y", "empty/", "f"])
                .mount_with(&format!("rename_dir={mode}"));
            fails!(m.rename("d", "full"), NOTEMPTY);
            fails!(m.rename("d", "f"), NOTDIR);
            fails!(m.rename("d", "d/in"), INVAL);
            fails!(m.rename_with("d", "f", RenameFlags::NOREPLACE), EXIST);
            fails!(m.rename_with("d", "gone", RenameFlags::EXCHANGE), NOENT);
            if mode == "exdev" {
                fails!(m.rename("d", "empty"), XDEV);
            }
            m.assert_ls("", &["d", "empty", "f", "full"]);
            m.assert_ls("d", &["x"]);
        }
    }

    /// fsync needs no right to write, and appending none to overwrite.
    fn fsync_and_append_of_protected_files(dialect) {
        let mut m = Stack::of(dialect).upper(["log=1", "fixed=1"]).lower(["x"]).mount();
        let log = Frozen::new(&m.up("log"), IFlags::APPEND);
        let fixed = Frozen::new(&m.up("fixed"), IFlags::IMMUTABLE);
        m.remount();
        for name in ["log", "fixed"] {
            let fd = m.open(name, OFlags::RDONLY).unwrap();
            rustix::fs::fsync(&fd).unwrap();
        }
        for name in ["log", "fixed"] {
            let overwritten = m.open(name, OFlags::WRONLY).and_then(|fd| {
                // Without a word of the open, the first that is told of it is the change.
                assert!(opens_unseen());
                rustix::io::write(&fd, b"3")?;
                rustix::fs::fsync(fd)
            });
            fails!(overwritten, PERM);
            // What could not be stored goes out of the kernel's cache after the answer.
            let is_dropped = || (m.read(name).as_deref() == Ok("1")).then_some(());
            wait_for(Duration::from_secs(5), is_dropped).expect("what is stored");
        }
        let fd = m.open("log", OFlags::WRONLY | OFlags::APPEND).unwrap();
        rustix::io::write(&fd, b"2").unwrap();
        drop(fd);
        m.assert_file("log", "12");
        m.assert_file("fixed", "1");
        drop((log, fixed));
    }
}

/// The way to a lower's object does not follow the names that its directories get in the union.
#[test]
fn unlinked_lower_file_whose_directory_moves() {
    let mut items: Vec<String> = (0..300).map(|n| format!("many/{n}/f=x")).collect();
    items.extend(["d/f=right", "e/f=wrong", "d/sub/g=right"].map(String::from));
    let m = Stack::new().lower(&items).descriptors(100).mount();
    let file = m.open("d/f", OFlags::RDONLY).unwrap();
    let deep = m.open("d/sub/g", OFlags::RDONLY).unwrap();
    for name in ["d/f", "d/sub/g", "e/f"] {
        m.unlink(name).unwrap();
    }
    m.rmdir("d/sub").unwrap();
    m.rmdir("e").unwrap();
    m.rename("d", "e").unwrap();
    for n in 0..300 {
        m.assert_file(&format!("many/{n}/f"), "x");
    }
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    for fd in [&file, &deep] {
        let mut content = [0; 16];
        let n = rustix::io::pread(fd, &mut content, 0).unwrap();
        assert_eq!(&content[..n], b"right");
        rustix::fs::fchmod(fd, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert_eq!(rustix::fs::fstat(fd).unwrap().st_mode & 0o777, 0o600);
    }
}

/// As on a plain directory, chgrp by an owner outside the old group clears the set-group-id bit.
#[test]
fn chgrp_by_an_owner_outside_the_group() {
    let m = Stack::new()
        .upper(["f | uid=1000 gid=2000"])
        .lower(["x"])
        .mount();
    m.chmod("f", 0o2644).unwrap();
    Caller::user(1000).call(|| m.chown("f", 1000, 1000).unwrap());
    assert_eq!(m.mode("f"), 0o644);
}

/// The way up from a bind mount leads past the directory that it shows.
#[test]
fn upper_inside_a_lower_through_a_bind_mount() {
    let l = Stack::new().lower(["sub/f"]).build();
    let bound = l.scratch().join("bound");
    fs::create_dir(&bound).unwrap();
    rustix::mount::mount_bind(l.lowers[0].join("sub"), &bound).unwrap();
    let mut options = std::ffi::OsString::from("lowerdir=");
    options.push(&l.lowers[0]);
    options.push(",upperdir=");
    options.push(&bound);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| l.refused(&options)));
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(outcome.unwrap().contains("overlaps"));
}
