//! Times, and setattr by name and through a handle.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use crate::calls::Caller;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

fn time(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn set(m: &Mount, name: &str, access: Timespec, modification: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: access,
        last_modification: modification,
    };
    rustix::fs::utimensat(CWD, m.p(name), &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn times(m: &Mount, name: &str) -> [(i64, u64); 2] {
    let stat = m.stat(name).unwrap();
    [
        (stat.st_atime, stat.st_atime_nsec),
        (stat.st_mtime, stat.st_mtime_nsec),
    ]
}

fn ctime(m: &Mount, name: &str) -> (i64, u64) {
    let stat = m.stat(name).unwrap();
    (stat.st_ctime, stat.st_ctime_nsec)
}

dialects! {
    fn nanoseconds_and_before_1970(dialect) {
        let mut m = Stack::of(dialect)
            .upper(["u", "du/", "su->u"])
            .lower(["l", "dl/", "sl->l", "old | mtime=-1000000.250000000 atime=-5.5"])
            .mount();
        assert_eq!(times(&m, "old"), [(-5, 5), (-1_000_000, 250_000_000)]);
        m.chmod("old", 0o600).unwrap();
        for name in ["u", "l", "du", "dl", "su", "sl"] {
            set(&m, name, time(-86_400, 1), time(-1, 999_999_999)).unwrap();
            assert_eq!(times(&m, name), [(-86_400, 1), (-1, 999_999_999)], "{name}");
        }
        m.remount();
        for name in ["u", "l", "du", "dl", "su", "sl"] {
            assert_eq!(times(&m, name), [(-86_400, 1), (-1, 999_999_999)], "{name}");
        }
        assert_eq!(times(&m, "old"), [(-5, 5), (-1_000_000, 250_000_000)]);
    }

    fn now_and_omit(dialect) {
        let m = Stack::of(dialect).upper(["u"]).lower(["l"]).mount();
        for name in ["u", "l"] {
            set(&m, name, time(10, 1), time(20, 2)).unwrap();
            set(&m, name, time(0, UTIME_OMIT), time(30, 3)).unwrap();
            assert_eq!(times(&m, name), [(10, 1), (30, 3)]);
            set(&m, name, time(40, 4), time(0, UTIME_OMIT)).unwrap();
            assert_eq!(times(&m, name), [(40, 4), (30, 3)]);
            set(&m, name, time(0, UTIME_NOW), time(0, UTIME_OMIT)).unwrap();
            assert_eq!(times(&m, name)[1], (30, 3));
            assert!(times(&m, name)[0].0 > 1_000_000);
            set(&m, name, time(0, UTIME_NOW), time(0, UTIME_NOW)).unwrap();
            assert!(times(&m, name)[1].0 > 1_000_000);
        }
    }

    fn through_a_handle(dialect) {
        let mut m = Stack::of(dialect).upper(["u=text"]).lower(["l=text"]).mount();
        for name in ["u", "l"] {
            for flags in [OFlags::RDONLY, OFlags::RDWR] {
                let fd = m.open(name, flags).unwrap();
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o640)).unwrap();
                rustix::fs::fchown(&fd, Some(Uid::from_raw(5)), Some(Gid::from_raw(6))).unwrap();
                let times = Timestamps { last_access: time(1, 2), last_modification: time(3, 4) };
                rustix::fs::futimens(&fd, &times).unwrap();
                let stat = rustix::fs::fstat(&fd).unwrap();
                assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o640, 5, 6));
                assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (3, 4));
                assert_eq!(stat.st_ino, m.stat(name).unwrap().st_ino);
            }
        }
        m.remount();
        for name in ["u", "l"] {
            assert_eq!(times(&m, name), [(1, 2), (3, 4)]);
            assert_eq!(m.mode(name), 0o640);
        }
    }

    /// What a plain directory does to the times of files and their parents.
    fn moved_by_changes(dialect) {
        let m = Stack::of(dialect)
            .upper(["u/f=1 | mtime=1000", "u/ | mtime=1000"])
            .lower(["l/f=1 | mtime=1000", "l/ | mtime=1000", "l/d/"])
            .mount();
        for dir in ["u", "l"] {
            let file = format!("{dir}/f");
            m.stat(dir).unwrap();
            let old = |name: &str| set(&m, name, time(1000, 0), time(1000, 0)).unwrap();
            let mtime = |name: &str| m.stat(name).unwrap().st_mtime;
            for step in 0..6 {
                old(dir);
                match step {
                    0 => drop(m.creat(&format!("{dir}/n"), 0o644).unwrap()),
                    1 => m.rename(&format!("{dir}/n"), &format!("{dir}/o")).unwrap(),
                    2 => m.link(&format!("{dir}/o"), &format!("{dir}/p")).unwrap(),
                    3 => m.unlink(&format!("{dir}/o")).unwrap(),
                    4 => m.mkdir(&format!("{dir}/e")).unwrap(),
                    _ => m.rmdir(&format!("{dir}/e")).unwrap(),
                }
                assert!(mtime(dir) > 1000, "{dir}, step {step}");
            }
            old(dir);
            old(&file);
            let before = ctime(&m, &file);
            std::thread::sleep(Duration::from_millis(15));
            m.chmod(&file, 0o600).unwrap();
            assert!(ctime(&m, &file) > before);
            assert_eq!(mtime(&file), 1000);
            m.write(&file, "new").unwrap();
            assert!(mtime(&file) > 1000);
            assert_eq!(mtime(dir), 1000, "{dir}: writing a file does not touch its directory");
        }
        // Removing from a lower directory counts too.
        set(&m, "l", time(1000, 0), time(1000, 0)).unwrap();
        m.rmdir("l/d").unwrap();
        assert!(m.stat("l").unwrap().st_mtime > 1000);
    }

    fn inode_numbers_are_stable(dialect) {
        let mut m = Stack::of(dialect).upper(["u", "du/x"]).lower(["l", "dl/x", "s->l"]).mount();
        let names = ["", "u", "du", "du/x", "l", "dl", "dl/x", "s"];
        let numbers = |m: &Mount| names.map(|name| m.stat(name).unwrap().st_ino);
        let held = m.remembered(&names);
        let before = numbers(&m);
        let mut unique = before.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        let listed = |m: &Mount| -> Vec<(String, u64)> {
            let entry = |entry: std::io::Result<fs::DirEntry>| {
                let entry = entry.unwrap();
                let number = std::os::unix::fs::DirEntryExt::ino(&entry);
                (entry.file_name().to_string_lossy().into_owned(), number)
            };
            let mut all: Vec<_> = fs::read_dir(m.path()).unwrap().map(entry).collect();
            all.sort();
            all
        };
        for (name, number) in listed(&m) {
            assert_eq!(m.stat(&name).unwrap().st_ino, number, "{name} in the listing");
        }
        for name in ["u", "du", "du/x", "l", "dl", "dl/x"] {
            m.chmod(name, 0o711).unwrap();
        }
        m.chown("s", 3, 3).unwrap();
        assert_eq!(numbers(&m), before, "over copy-up");
        drop(held);
        m.remount();
        for (name, number) in listed(&m) {
            assert_eq!(m.stat(&name).unwrap().st_ino, number, "{name} in the listing");
        }
        let device = m.stat("").unwrap().st_dev;
        assert!(names.iter().all(|name| m.stat(name).unwrap().st_dev == device));
    }

    fn inode_numbers_over_a_remount(dialect) {
        let mut m = Stack::of(dialect).upper(["u", "du/x"]).lower(["l", "dl/x", "s->l"]).mount();
        let names = ["", "u", "du", "du/x", "l", "dl", "dl/x", "s"];
        let numbers = |m: &Mount| names.map(|name| m.stat(name).unwrap().st_ino);
        let before = numbers(&m);
        m.remount();
        assert_eq!(numbers(&m), before, "nothing was copied up");
        for name in ["l", "dl", "dl/x"] {
            m.chmod(name, 0o711).unwrap();
        }
        m.chown("s", 3, 3).unwrap();
        assert_eq!(numbers(&m), before, "copied up in this mount");
        m.remount();
        assert_eq!(numbers(&m), before, "copied up before the remount");
        for (name, number) in names.iter().zip(before).filter(|(name, _)| !name.is_empty()) {
            let (dir, file) = name.rsplit_once('/').unwrap_or(("", name));
            let mut entries = fs::read_dir(m.p(dir)).unwrap().map(Result::unwrap);
            let entry = entries.find(|e| e.file_name() == *file).unwrap();
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), number, "{name} listed");
        }
        // They move along, and a second name is the same file.
        m.rename("l", "du/moved").unwrap();
        m.link("du/moved", "dl/linked").unwrap();
        m.remount();
        assert_eq!(m.stat("du/moved").unwrap().st_ino, before[4]);
        assert_eq!(m.stat("dl/linked").unwrap().st_ino, before[4]);
    }
}

#[test]
fn who_may_set_times() {
    let m = Stack::new()
        .upper(["u | mode=0666"])
        .lower(["l | mode=0666", "r | mode=0644"])
        .mount();
    Caller::user(1000).call(|| {
        for name in ["u", "l"] {
            set(&m, name, time(0, UTIME_NOW), time(0, UTIME_NOW)).unwrap();
            fails!(set(&m, name, time(1, 0), time(1, 0)), PERM);
        }
        fails!(set(&m, "r", time(0, UTIME_NOW), time(0, UTIME_NOW)), ACCESS);
    });
    let up = fs::metadata(m.up("l")).unwrap();
    assert_eq!(up.uid(), 0);
}

#[test]
fn statfs() {
    let m = Stack::new().lower(["f"]).mount();
    let (own, upper) = (
        rustix::fs::statfs(m.path()).unwrap(),
        rustix::fs::statfs(m.layers.upper_path()).unwrap(),
    );
    assert_eq!(
        (own.f_blocks, own.f_bsize, own.f_files),
        (upper.f_blocks, upper.f_bsize, upper.f_files)
    );
    assert_eq!(own.f_namelen, 255);
    assert!(own.f_bavail > 0 && own.f_bavail <= own.f_bfree && own.f_ffree > 0);
    assert_eq!(rustix::fs::statfs(m.p("f")).unwrap().f_blocks, own.f_blocks);
    let m = Stack::new().read_only().lower(["f"]).mount();
    assert!(rustix::fs::statfs(m.path()).unwrap().f_blocks > 0);
}
