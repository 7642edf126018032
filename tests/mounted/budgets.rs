//! How many requests each operation sends, in each way of data.
//!
//! Counts depend neither on the machine nor on what else it does. They are those of Linux 6.18.

use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps};

use crate::requests::Counter;
use crate::support::{Mount, Stack};

/// The ways of data: the option, and the place of its column.
const WAYS: [&str; 3] = ["cached", "none", "none,writeback=0"];

/// A mount with its counter. What a connection learns once is learned.
struct Counted {
    // Dropped first: it keeps the mount busy.
    counter: Counter,
    m: Mount,
    way: &'static str,
    wrong: RefCell<Vec<String>>,
}

impl Counted {
    fn new(way: &'static str) -> Self {
        let files = [
            "f", "g", "t", "h", "mode", "own", "time", "size", "gone", "old", "link",
        ];
        let files = files.map(|name| format!("d/{name}=text"));
        let more = ["d/l->f", "d/empty/", "list/a=1", "list/b=2", "warm=1"];
        let m = Stack::new()
            .lower(files.into_iter().chain(more.map(str::to_owned)))
            .mount_with(&format!("open={way}"));
        let counter = Counter::new(&m);
        // OPENDIR, OPEN and FLUSH are answered ENOSYS once; and the upper has its directory, so that
        // no copy-up of it changes what comes.
        assert_eq!(fs::read_dir(m.path()).unwrap().count(), 3);
        fs::write(m.p("warm"), "2").unwrap();
        fs::write(m.p("d/warm"), "1").unwrap();
        fs::read(m.p("d/warm")).unwrap();
        let wrong = RefCell::default();
        Self {
            counter,
            m,
            way,
            wrong,
        }
    }

    fn know(&self, names: &[&str]) {
        for name in names {
            self.m.stat(&format!("d/{name}")).unwrap();
        }
    }

    /// Expects what `work` in the directory sends, by the columns of [`WAYS`]. That the attributes of the
    /// directory are asked for anew after a change is part of it.
    fn sends(&self, what: &str, expected: [&str; 3], work: impl FnOnce(&Path)) {
        let dir = self.m.p("d");
        fs::metadata(&dir).unwrap();
        tick();
        let column = WAYS.iter().position(|way| *way == self.way).unwrap();
        let expected = expected[column];
        let sent = self.counter.of(|| {
            work(&dir);
            fs::metadata(&dir).unwrap();
        });
        if sent != expected {
            let wrong = format!("open={}: {what}: {sent}, expected {expected}", self.way);
            self.wrong.borrow_mut().push(wrong);
        }
    }
}

/// Checks each way of data. Where the kernel dropped something of its caches meanwhile, more was sent;
/// so what is wrong must be wrong each time.
fn each_way(check: impl Fn(&Counted)) {
    for way in WAYS {
        let mut wrong = Vec::new();
        for _ in 0..6 {
            let counted = Counted::new(way);
            check(&counted);
            wrong = counted.wrong.take();
            if wrong.is_empty() {
                break;
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

const NOTHING: [&str; 3] = [""; 3];

/// The same in every way of data.
fn all(same: &'static str) -> [&'static str; 3] {
    [same; 3]
}

/// One that the daemon is asked to open, and one that it is not.
fn by_open(opened: &'static str, unopened: &'static str) -> [&'static str; 3] {
    [opened, unopened, unopened]
}

/// The attributes of a name alone.
fn stat(path: impl AsRef<Path>) {
    rustix::fs::lstat(path.as_ref()).unwrap();
}

/// Open, read, close, and nothing else.
fn read(path: &Path) {
    let file = crate::process::open_file(path, OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(rustix::io::read(file, &mut [0; 100]).unwrap() > 0);
}

/// Waits until the kernel's clock has gone on: a time that does not change is not sent.
fn tick() {
    std::thread::sleep(std::time::Duration::from_millis(15));
}

/// Open, write, close, and nothing else.
fn write(path: &Path, how: OFlags, text: &str) {
    let file =
        crate::process::open_file(path, OFlags::WRONLY | how, Mode::from_raw_mode(0o644)).unwrap();
    tick();
    assert_eq!(rustix::io::write(file, text.as_bytes()), Ok(text.len()));
}

/// The number of entries, by open and getdents(2) alone.
fn list(path: &Path) -> usize {
    let dir = crate::process::open_file(path, OFlags::RDONLY, Mode::empty()).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); 4096];
    let mut entries = rustix::fs::RawDir::new(dir, &mut space);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        entry.unwrap();
        count += 1;
    }
    count
}

const TIMES: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 1,
        tv_nsec: 2,
    },
    last_modification: Timespec {
        tv_sec: 3,
        tv_nsec: 4,
    },
};

#[test]
fn names_and_attributes() {
    each_way(|c| {
        c.sends("first lookup", all("Lookup"), |d| stat(d.join("f")));
        c.sends("stat again", NOTHING, |d| stat(d.join("f")));
        c.sends("access", NOTHING, |d| {
            rustix::fs::access(d.join("f"), Access::READ_OK).unwrap();
        });
        let none = |d: &Path| assert!(rustix::fs::lstat(d.join("no")).is_err());
        c.sends("first failed lookup", all("Lookup"), none);
        c.sends("failed stat again", NOTHING, none);
        let link = |d: &Path| assert_eq!(fs::read_link(d.join("l")).unwrap().as_os_str(), "f");
        c.sends("first readlink", all("Lookup Readlink"), link);
        c.sends("readlink again", NOTHING, link);
        let dir = |d: &Path| assert_eq!(list(&d.join("../list")), 4);
        c.sends("list, first", all("Readdir Readdirplus"), dir);
        c.sends("list again", NOTHING, dir);
        c.sends("stat of what was listed", NOTHING, |d| {
            stat(d.join("../list/a"));
        });
        c.sends("stat after listing", all("Getattr"), |d| {
            stat(d.join("../list"));
        });
    });
}

#[test]
fn reading() {
    each_way(|c| {
        let first = by_open("Lookup Open Read Release", "Lookup Read");
        c.sends("open-read-close, first", first, |d| read(&d.join("f")));
        c.sends("open-read-close, again", by_open("Open Release", ""), |d| {
            read(&d.join("f"));
        });
        c.sends("stat after reading", all("Getattr"), |d| stat(d.join("f")));
        c.sends("stat again", NOTHING, |d| stat(d.join("f")));
        let locked = |d: &Path| {
            let file = fs::File::open(d.join("f")).unwrap();
            rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        };
        c.sends("flock", by_open("Open Release", ""), locked);
    });
}

#[test]
fn writing() {
    each_way(|c| {
        let new = [
            "Lookup Getattr Write Release Getxattr Create",
            "Lookup Getattr Setattr Write Getxattr Create",
            "Lookup Getattr Write Getxattr Create",
        ];
        let plain = OFlags::empty();
        c.sends("create, write, close", new, |d| {
            write(&d.join("new"), OFlags::CREATE, "text");
        });
        c.sends("stat of it", all("Getattr"), |d| stat(d.join("new")));
        // The page of a file that was not read is read before a part of it is kept.
        for (name, kept) in [
            ("new", "Setattr Write Getxattr"),
            ("g", "Setattr Read Write Getxattr"),
        ] {
            c.know(&[name]);
            let change = |d: &Path| write(&d.join(name), plain, "TEXT");
            let first = ["Open Write Release Getxattr", kept, "Write Getxattr"];
            let again = ["Open Write Release", "Setattr Write", "Write"];
            c.sends(&format!("open, write, close of {name}"), first, change);
            c.sends(&format!("again of {name}"), again, change);
        }
        for name in ["new", "t"] {
            c.know(&[name]);
            let cut = |d: &Path| write(&d.join(name), OFlags::TRUNC, "2");
            // Once for cutting it, and as its attributes are new then, once for writing.
            let sent = [
                "Open Write Release Getxattr*2",
                "Setattr*2 Write Getxattr*2",
                "Setattr Write Getxattr*2",
            ];
            c.sends(&format!("O_TRUNC, write, close of {name}"), sent, cut);
        }
        let appends = ["Open Write*100 Release", "Setattr Write", "Write*100"];
        c.sends("100 appends", appends, |d| {
            let mut file = fs::OpenOptions::new()
                .append(true)
                .open(d.join("new"))
                .unwrap();
            (0..100).for_each(|_| file.write_all(b"0123456789").unwrap());
        });
        c.know(&["f"]);
        let copied = [
            "Open*2 Release*2 CopyFileRange",
            "Setattr CopyFileRange",
            "CopyFileRange",
        ];
        c.sends("copy_file_range", copied, |d| {
            let from = fs::File::open(d.join("f")).unwrap();
            let to = fs::OpenOptions::new()
                .write(true)
                .open(d.join("new"))
                .unwrap();
            rustix::fs::copy_file_range(from, Some(&mut 0), to, Some(&mut 0), 4).unwrap();
        });
    });
}

#[test]
fn attributes() {
    each_way(|c| {
        c.know(&["mode", "own", "time", "size"]);
        for when in ["lower", "upper"] {
            c.sends(&format!("chmod, {when}"), all("Setattr"), |d| {
                fs::set_permissions(d.join("mode"), Permissions::from_mode(0o600)).unwrap();
            });
            c.sends(&format!("chown, {when}"), all("Setattr Getxattr"), |d| {
                chown(d.join("own"), Some(1), Some(2)).unwrap();
            });
            c.sends(&format!("utimens, {when}"), all("Setattr"), |d| {
                rustix::fs::utimensat(CWD, d.join("time"), &TIMES, AtFlags::empty()).unwrap();
            });
            c.sends(&format!("truncate, {when}"), all("Setattr Getxattr"), |d| {
                nix::unistd::truncate(&d.join("size"), 2).unwrap();
            });
        }
    });
}

#[test]
fn names_that_change() {
    each_way(|c| {
        c.know(&["old", "link", "gone", "empty", "h"]);
        let kept = |plain, kept| [plain, kept, plain];
        c.sends("mkdir", all("Lookup Getattr Mkdir"), |d| {
            fs::create_dir(d.join("dir")).unwrap();
        });
        c.sends("symlink", all("Lookup Getattr Symlink"), |d| {
            symlink("x", d.join("sym")).unwrap();
        });
        // The time of change of a file whose times the kernel keeps is sent with its others.
        c.sends(
            "link",
            kept("Lookup Getattr Link", "Lookup Getattr Setattr Link"),
            |d| {
                fs::hard_link(d.join("link"), d.join("link2")).unwrap();
            },
        );
        c.sends(
            "rename",
            kept("Lookup Getattr Rename", "Lookup Getattr Setattr Rename"),
            |d| {
                fs::rename(d.join("old"), d.join("moved")).unwrap();
            },
        );
        let over = kept("Lookup Getattr Rename", "Lookup Getattr Setattr*2 Rename");
        c.sends("rename over", over, |d| {
            fs::rename(d.join("moved"), d.join("h")).unwrap();
        });
        for name in ["gone", "link2"] {
            let sent = kept("Getattr Unlink", "Getattr Setattr Unlink");
            c.sends(&format!("unlink {name}"), sent, |d| {
                fs::remove_file(d.join(name)).unwrap();
            });
        }
        for name in ["dir", "empty"] {
            let removed = |d: &Path| fs::remove_dir(d.join(name)).unwrap();
            c.sends(&format!("rmdir {name}"), all("Getattr Rmdir"), removed);
        }
        let tar = [
            "Lookup Getattr Setattr*3 Write Release Getxattr*2 Create",
            "Lookup Getattr Setattr*4 Write Getxattr*2 Create",
            "Lookup Getattr Setattr*3 Write Getxattr*2 Create",
        ];
        c.sends("a file of tar x", tar, |d| {
            let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file =
                crate::process::open_file(d.join("tar"), how, Mode::from_raw_mode(0o600)).unwrap();
            tick();
            rustix::io::write(&file, b"text").unwrap();
            std::os::unix::fs::fchown(&file, Some(1), Some(2)).unwrap();
            rustix::fs::futimens(&file, &TIMES).unwrap();
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644)).unwrap();
        });
    });
}
