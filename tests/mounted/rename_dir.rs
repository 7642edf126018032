//! Renaming directories that lowers have parts of, while they are in use, and when it fails.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::dialects;
use crate::fails;
use crate::process::{following, wait_for};
use crate::regressions_copy_up::Image;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const MODES: [&str; 2] = ["rename_dir=copy", "rename_dir=redirect"];

/// Everything below a directory but access and change times, with inode numbers.
fn numbers(root: &Path) -> BTreeMap<PathBuf, (u64, u32, u32, u32, i64, u64)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            todo.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let seen = (
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            size,
        );
        all.insert(path.strip_prefix(root).unwrap().to_owned(), seen);
    }
    all
}

dialects! {
    /// In a directory that was made at the path where the lowers have it, it is not found beside.
    fn within_a_new_directory_at_its_old_path(dialect) {
        for mode in MODES {
            let lower = ["a/s/u/f=1", "a/s/u/g=2", "a/k"];
            let mut m = Stack::of(dialect).lower(lower).mount_with(mode);
            fs::rename(m.p("a/s"), m.p("b")).unwrap();
            fs::create_dir(m.p("a/s")).unwrap();
            fs::rename(m.p("b/u"), m.p("a/s/z")).unwrap();
            fs::rename(m.p("a/s/z"), m.p("a/s/w")).unwrap();
            m.remount();
            assert_eq!(fs::read(m.p("a/s/w/f")).unwrap(), b"1", "{mode}");
            fs::rename(m.p("a/s"), m.p("c")).unwrap();
            m.remount();
            assert_eq!(fs::read(m.p("c/w/g")).unwrap(), b"2", "{mode}");
        }
    }

    /// Numbers, owners, modes and times of all that moves along stay, over a remount too.
    fn what_is_inside_stays_itself(dialect) {
        for mode in MODES {
            let mut m = Stack::of(dialect)
                .upper(["d/up=1 | mtime=5", "d/s/up=2 | mode=0600 mtime=6", "t/"])
                .lower([
                    "d/f=text | mode=0640 uid=5 gid=6 mtime=7 x:user.k=v",
                    "d/l->f",
                    "d/s/g=x | mtime=8",
                    "d/only/deep/h | mtime=9",
                    "fifo(d/only/p)",
                    "d/only/ | mode=0710 uid=7 mtime=10",
                    "d/s/ | mtime=11",
                    "d/ | mode=0751 gid=8 mtime=12",
                ])
                .lower(["d/only/deep/i", "d/only/deep/ | mode=0700"])
                .mount_with(mode);
            let before = numbers(&m.p("d"));
            assert_eq!(before.len(), 12);
            m.rename("d", "t/e").unwrap();
            for _ in 0..2 {
                assert_eq!(numbers(&m.p("t/e")), before, "{mode}");
                fails!(m.stat("d"), NOENT);
                m.assert_file("t/e/f", "text");
                let value = xattr::get(m.p("t/e/f"), "user.k").unwrap();
                assert_eq!(value.as_deref(), Some(&b"v"[..]));
                m.remount();
            }
            m.rename("t/e/only", "only").unwrap();
            let moved = numbers(&m.p("only"));
            m.remount();
            assert_eq!(numbers(&m.p("only")), moved);
            assert_eq!(moved[Path::new("deep/h")], before[Path::new("only/deep/h")]);
        }
    }

    /// Descriptors and working directories inside go on, and write to what the new name shows.
    fn open_files_go_along(dialect) {
        for mode in MODES {
            let m = Stack::of(dialect)
                .lower(["d/f=lower", "d/s/g=lower", "d/gone=still", "d/old/x", "k"])
                .mount_with([mode, following()].join(",").trim_end_matches(','));
            let mut read = fs::File::open(m.p("d/f")).unwrap();
            let dir = fs::File::open(m.p("d/s")).unwrap();
            let mut gone = fs::File::open(m.p("d/gone")).unwrap();
            let mut written = fs::OpenOptions::new().read(true).write(true).open(m.p("d/s/g")).unwrap();
            m.unlink("d/gone").unwrap();
            m.rename("d", "e").unwrap();
            m.rename("e/s", "s").unwrap();
            let text = |file: &mut fs::File| {
                let mut text = String::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            };
            assert_eq!(text(&mut read), "lower");
            assert_eq!(text(&mut gone), "still");
            assert_eq!(gone.metadata().unwrap().nlink(), 0);
            written.write_all(b"WRITE").unwrap();
            m.assert_file("s/g", "WRITE");
            m.write("e/f", "other").unwrap();
            assert_eq!(text(&mut read), "other");
            assert_eq!(dir.metadata().unwrap().ino(), m.stat("s").unwrap().st_ino);
            let inside = format!("/proc/self/fd/{}/g", std::os::fd::AsRawFd::as_raw_fd(&dir));
            assert_eq!(fs::read_to_string(inside).unwrap(), "WRITE");
        }
    }
}

/// A tmpfs of its own for an upper, so small that it fills up.
struct Small(tempfile::TempDir);

impl Small {
    fn new(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("mode=755,size={bytes}")).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("none", dir.path(), "tmpfs", flags, Some(&*options)).unwrap();
        Self(dir)
    }

    fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        stat.f_blocks - stat.f_bfree
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let gone = || rustix::mount::unmount(self.0.path(), UnmountFlags::empty()).ok();
        let _ = wait_for(std::time::Duration::from_secs(5), gone);
    }
}

fn big(m: &Mount, name: &str) -> String {
    let text = m.read(name).unwrap();
    assert_eq!(text.len(), 400_000, "{name}");
    text
}

/// Without space the old state stays, and the space that the copies took comes back.
#[test]
fn no_space_in_the_middle() {
    for whiteout in ["whiteout=aufs", "whiteout=overlay"] {
        let small = Small::new(1_500_000);
        let data = "x".repeat(400_000);
        let files = (0..6).map(|n| format!("d/s{}/f{n}={data}", n % 2));
        let mut m = Stack::new()
            .upper_at(small.0.path())
            .upper(["d/s0/up"])
            .lower(files)
            .mount_with(whiteout);
        // What is made once for good is not the rename's.
        m.rename("d/s0/up", "d/s0/there").unwrap();
        m.mkdir("t").unwrap();
        let before = (numbers(&m.p("")), small.used());
        fails!(m.rename("d", "e"), NOSPC);
        fails!(m.rename("d", "t/e"), NOSPC);
        assert_eq!(numbers(&m.p("")), before.0);
        assert_eq!(small.used(), before.1);
        assert_eq!(big(&m, "d/s1/f5"), data);
        m.remount();
        assert_eq!(numbers(&m.p("")), before.0);
        // Less has to be copied then.
        for n in [0, 2, 3, 4] {
            m.unlink(&format!("d/s{}/f{n}", n % 2)).unwrap();
        }
        m.rename("d", "t/e").unwrap();
        for _ in 0..2 {
            m.assert_ls("t/e/s0", &["there"]);
            m.assert_ls("t/e/s1", &["f1", "f5"]);
            assert_eq!(big(&m, "t/e/s1/f5"), data);
            m.remount();
        }
        m.unmount();
        drop(m);
    }
}

/// Where the filesystem shares blocks, the copies take no space.
#[test]
fn reflinks_where_possible() {
    let image = Image::made_by(&["mkfs.xfs", "-q", "-m", "reflink=1"], 320);
    let lower = image.mnt().join("lower");
    fs::create_dir_all(lower.join("d")).unwrap();
    let data = "0123456789abcdef".repeat(4 << 20);
    fs::write(lower.join("d/large"), &data).unwrap();
    let mut layers = Stack::new().upper_at(&image.mnt()).build();
    layers.lowers.push(lower);
    let m = layers.mount();
    let used = || {
        let fd = crate::process::open_file(image.mnt(), OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::syncfs(fd).unwrap();
        let stat = rustix::fs::statvfs(image.mnt()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let before = used();
    m.rename("d", "e").unwrap();
    let more = used().saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes of 64 MiB");
    assert!(m.read("e/large").unwrap() == data);
}

fn files(count: u32) -> Vec<String> {
    (0..count)
        .map(|n| format!("d/s{}/f{n}={}", n % 10, format!("{n};").repeat(500)))
        .collect()
}

/// Readers find each file with its contents under the old or the new name all the time, as when
/// a package manager moves a directory away.
#[test]
fn readers_meanwhile() {
    for mode in MODES {
        let mut m = Stack::new()
            .lower(files(300))
            .limit(120)
            .mount_with(&format!("volatile,{mode}"));
        let stop = AtomicBool::new(false);
        let reads = AtomicU32::new(0);
        thread::scope(|scope| {
            for reader in 0..3 {
                let (m, stop, reads) = (&m, &stop, &reads);
                scope.spawn(move || {
                    let mut n = reader;
                    while !stop.load(Ordering::Relaxed) {
                        n = (n + 7) % 300;
                        let read = |top: &str| m.read(&format!("{top}/s{}/f{n}", n % 10)).ok();
                        // It may move between two looks; a third finds it.
                        let text = ["d", "e", "d", "e", "d", "e"].into_iter().find_map(read);
                        let text = text.unwrap_or_else(|| panic!("f{n} is under neither name"));
                        assert_eq!(text, format!("{n};").repeat(500));
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..5 {
                m.rename("d", "e").unwrap();
                m.rename("e", "d").unwrap();
            }
            m.rename("d", "e").unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(reads.load(Ordering::Relaxed) > 0);
        m.remount();
        m.assert_ls("", &["e"]);
        m.assert_file("e/s9/f299", &"299;".repeat(500));
    }
}

/// What is changed while the directory is being completed is what it then holds.
#[test]
fn changes_meanwhile() {
    let mut m = Stack::new()
        .lower(files(400))
        .limit(120)
        .mount_with("volatile");
    for round in 0..6 {
        let (from, to) = if round % 2 == 0 {
            ("d", "e")
        } else {
            ("e", "d")
        };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..3 {
                let (m, stop) = (&m, &stop);
                scope.spawn(move || {
                    let mut n = writer + 10 * round;
                    while !stop.load(Ordering::Relaxed) {
                        n = (n + 3) % 400;
                        for top in [from, to] {
                            let dir = m.p(format!("{top}/s{}", n % 10));
                            // Whatever the moment, each step is whole or not done at all.
                            let _ = fs::write(dir.join(format!("new{writer}")), "new");
                            let file = fs::OpenOptions::new()
                                .append(true)
                                .open(dir.join(format!("f{n}")));
                            let _ = file.and_then(|mut file| file.write_all(b"+"));
                            let _ = fs::remove_file(dir.join(format!("f{}", n + 11)));
                            let _ = fs::rename(dir.join(format!("f{}", n + 5)), dir.join("moved"));
                        }
                    }
                });
            }
            m.rename(from, to).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        m.assert_ls("", &[to]);
        let before = numbers(&m.p(to));
        for (path, seen) in &before {
            if seen.1 & libc::S_IFMT == libc::S_IFREG && path.to_string_lossy().contains("/f") {
                let text = fs::read_to_string(m.p(to).join(path)).unwrap();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let start = format!("{};", &name[1..]).repeat(500);
                assert!(text.starts_with(&start), "{}", path.display());
                assert!(text[start.len()..].bytes().all(|b| b == b'+'));
            }
        }
        m.remount();
        assert_eq!(numbers(&m.p(to)), before, "after a remount");
    }
}
