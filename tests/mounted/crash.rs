//! The daemon is killed at any moment of random work. After a mount anew the tree is the one of
//! before the operation that was under way, or the one of after it, and all that was answered
//! before is there: the same operations are done to a plain directory, after each answer. Most
//! mounts are volatile: what the kernel has taken outlives the daemon, and no disk is waited for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::calls::errno;
use crate::dialects;
use crate::spec::{self, Dialect};
use crate::support::{Mount, Stack};

/// A generator of numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn one_of<'a>(&mut self, names: &[&'a str]) -> &'a str {
        let at = self.below(names.len() as u64);
        names[usize::try_from(at).unwrap()]
    }

    /// A path of one to three names, of few.
    fn path(&mut self) -> PathBuf {
        let mut path = PathBuf::new();
        for names in [
            &["a", "b", "c"][..],
            &["s", "t", "f0", "f1"],
            &["f0", "f1", "u"],
        ] {
            path.push(self.one_of(names));
            if self.below(3) == 0 {
                break;
            }
        }
        path
    }
}

/// One system call, done whole or not at all.
#[derive(Clone, Debug)]
pub enum Op {
    Rename(PathBuf, PathBuf, RenameFlags),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Create(PathBuf),
    Append(PathBuf, String),
    Truncate(PathBuf, i64),
    Unlink(PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf),
    Chmod(PathBuf, u32),
    Xattr(PathBuf, u8),
}

impl Op {
    pub fn random(random: &mut Random) -> Self {
        let path = random.path();
        match random.below(24) {
            0..=8 => {
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                ];
                let flag = flags[usize::try_from(random.below(4)).unwrap()];
                Self::Rename(path, random.path(), flag)
            }
            9..=10 => Self::Mkdir(path),
            11 => Self::Rmdir(path),
            12..=13 => Self::Create(path),
            14..=16 => Self::Append(path, format!("{};", random.below(1000))),
            17 => Self::Truncate(path, i64::try_from(random.below(9000)).unwrap()),
            18 => Self::Unlink(path),
            19 => Self::Link(path, random.path()),
            20 => Self::Symlink(path),
            21..=22 => Self::Chmod(path, 0o600 + u32::try_from(random.below(64)).unwrap()),
            _ => Self::Xattr(path, u8::try_from(random.below(200)).unwrap()),
        }
    }

    /// Does it below `root`.
    pub fn apply(&self, root: &Path) -> Result<(), Errno> {
        let at = |path: &PathBuf| root.join(path);
        let io = |result: std::io::Result<()>| result.map_err(|error| errno(&error));
        match self {
            Self::Rename(from, to, flags) => {
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), *flags)
            }
            Self::Mkdir(path) => io(fs::create_dir(at(path))),
            Self::Rmdir(path) => io(fs::remove_dir(at(path))),
            Self::Create(path) => io(fs::File::create_new(at(path)).map(drop)),
            Self::Append(path, text) => {
                let file = fs::OpenOptions::new().append(true).open(at(path));
                let mut file = file.map_err(|error| errno(&error))?;
                io(file.write_all(text.as_bytes()))?;
                // Whether it came in is known by then; a daemon that is gone gives EIO here.
                let closed = nix::unistd::close(OwnedFd::from(file));
                closed.map_err(|_| Errno::NOTCONN)
            }
            Self::Truncate(path, size) => nix::unistd::truncate(&at(path), *size)
                .map_err(|error| Errno::from_raw_os_error(error as i32)),
            Self::Unlink(path) => io(fs::remove_file(at(path))),
            Self::Link(from, to) => io(fs::hard_link(at(from), at(to))),
            Self::Symlink(path) => io(symlink("nowhere", at(path))),
            Self::Chmod(path, mode) => {
                // Not through a symlink, which leads nowhere.
                let meta = fs::symlink_metadata(at(path)).map_err(|error| errno(&error))?;
                if meta.is_symlink() {
                    return Err(Errno::LOOP);
                }
                io(fs::set_permissions(
                    at(path),
                    fs::Permissions::from_mode(*mode),
                ))
            }
            Self::Xattr(path, value) => io(xattr::set(at(path), "user.k", &[*value])),
        }
    }
}

/// What two trees are compared by.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// What was asked of the object at a path.
#[track_caller]
fn told<T>(path: &Path, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All objects below a directory, by their paths.
pub fn shown(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = told(&path, fs::symlink_metadata(&path));
        let content = if meta.is_dir() {
            let entries = told(&path, fs::read_dir(&path));
            todo.extend(entries.map(|entry| told(&path, entry).path()));
            Vec::new()
        } else if meta.is_symlink() {
            let target = told(&path, fs::read_link(&path));
            target.into_os_string().into_vec()
        } else {
            told(&path, fs::read(&path))
        };
        let shown = Shown {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            content,
            xattrs: crate::snapshot::xattrs(&path),
        };
        all.insert(path.strip_prefix(root).unwrap().to_owned(), shown);
    }
    all
}

/// The first differences, or nothing.
pub fn differences(
    left: &BTreeMap<PathBuf, Shown>, right: &BTreeMap<PathBuf, Shown>,
) -> Vec<String> {
    let mut paths: Vec<_> = left.keys().chain(right.keys()).collect();
    paths.sort();
    paths.dedup();
    let brief = |shown: Option<&Shown>| {
        let text = shown.map(|s| {
            let len = s.content.len();
            format!("{:o} links {} len {len} {:?}", s.mode, s.links, s.xattrs)
        });
        text.unwrap_or_else(|| "nothing".to_owned())
    };
    let differs = paths
        .iter()
        .filter(|path| left.get(**path) != right.get(**path));
    differs
        .take(5)
        .map(|path| {
            let (one, other) = (brief(left.get(*path)), brief(right.get(*path)));
            format!("{}: {one}, expected {other}", path.display())
        })
        .collect()
}

/// Says with any failure of a round, of whichever check, what was done.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// What became of the work of a round.
#[derive(Default)]
struct Worked {
    /// The operation that was not answered, and what it got instead.
    unanswered: Option<(Op, Errno)>,
    /// All operations, each with its result.
    log: Vec<String>,
}

impl Worked {
    /// The last operations.
    fn end(&self) -> String {
        let from = self.log.len().saturating_sub(12);
        self.log[from..].join("\n  ")
    }
}

/// Runs operations on the mount until it breaks; each that was answered is done to the plain
/// directory too, with the same result.
fn work(mnt: &Path, plain: &Path, seed: u64, started: &mpsc::Sender<()>) -> Worked {
    let mut random = Random(seed);
    let mut worked = Worked::default();
    for step in 0..400 {
        let op = Op::random(&mut random);
        if step == 3 {
            let _ = started.send(());
        }
        let got = op.apply(mnt);
        worked.log.push(format!("{step}: {op:?} = {got:?}"));
        if let Err(gone @ (Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED)) = got {
            worked.unanswered = Some((op, gone));
            break;
        }
        let wanted = op.apply(plain);
        let done = worked.end();
        assert_eq!(
            got, wanted,
            "left: union, right: plain; seed {seed}:\n  {done}"
        );
    }
    worked
}

/// One round: work, kill, mount again, compare.
fn round(m: &mut Mount, plain: &Path, seed: u64, options: &str) {
    let mnt = m.path().to_owned();
    let pid = Pid::from_raw(m.pid()).unwrap();
    let (started, start) = mpsc::channel();
    let directory = plain.to_owned();
    let delay = Duration::from_micros(Random(seed ^ 0x5555).below(25_000));
    let mut told = Told(format!(
        "{options}, seed {seed}: {pid:?} to be killed {delay:?} after step 3"
    ));
    let worker = thread::spawn(move || work(&mnt, &directory, seed, &started));
    let begun = start.recv_timeout(Duration::from_secs(20));
    thread::sleep(delay);
    kill_process(pid, Signal::KILL).unwrap();
    let worked = worker.join().expect("the work, as told above");
    told.0 = format!("{}, begun: {begun:?}, work:\n  {}", told.0, worked.end());
    rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
    m.ended().unwrap();
    m.mount_again();
    let got = shown(m.path());
    let before = differences(&got, &shown(plain));
    if before.is_empty() {
        return;
    }
    let Some((op, gone)) = worked.unanswered else {
        panic!("all was answered, and differs: {before:#?}");
    };
    let result = op.apply(plain);
    let after = differences(&got, &shown(plain));
    assert!(
        after.is_empty(),
        "{op:?} ({gone:?}; {result:?} on plain) is neither undone: {before:#?}\nnor done: {after:#?}"
    );
}

/// Kills in each test: `UNIONFS_CRASH_ROUNDS`.
fn rounds() -> u64 {
    std::env::var("UNIONFS_CRASH_ROUNDS").map_or(12, |n| n.parse().expect("a number"))
}

fn survives(dialect: Dialect, options: &str, seed: u64) {
    let mut items = vec![
        "b/f0=b".to_owned(),
        "b/s/f1=bs".to_owned(),
        "c/t/".to_owned(),
    ];
    // Enough that a kill meets a directory while it is copied.
    for n in 0..120 {
        items.push(format!("a/s/n{n}={}", "x".repeat(3000)));
        items.push(format!("a/m{n}={n}"));
    }
    items.push(format!("a/f0={}", "0123456789".repeat(5000)));
    // Files of several names, in directories that are renamed and completed.
    for link in ["b/f0~c/f0", "b/f0~a/t/f0", "b/s/f1~a/s/f1", "a/f0~b/t/f0"] {
        items.push(link.to_owned());
    }
    let lower = ["a/s/u/f0=1", "a/t/f1=2", "c/f1=3 | mode=0640 x:user.k=v"].map(str::to_owned);
    let mut m = Stack::of(dialect)
        .lower(items.clone())
        .lower(lower.clone())
        .limit(300)
        .mount_with(options);
    let plain = m.layers.scratch().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::set_permissions(&plain, fs::metadata(m.path()).unwrap().permissions()).unwrap();
    spec::build(&plain, &lower, false);
    spec::build(&plain, &items, false);
    for n in 0..rounds() {
        round(&mut m, &plain, seed + n, options);
    }
    let _told = Told(format!("{options}, after the rounds from seed {seed}"));
    m.remount();
    let left = differences(&shown(m.path()), &shown(&plain));
    assert!(left.is_empty(), "after a last remount: {left:#?}");
}

dialects! {
    fn killed_while_directories_are_completed(dialect) {
        survives(dialect, "volatile,rename_dir=copy", 100);
    }

    fn killed_while_directories_are_redirected(dialect) {
        survives(dialect, "volatile,rename_dir=redirect", 200);
    }

    fn killed_with_data_left_in_lowers(dialect) {
        survives(dialect, "volatile,rename_dir=copy,metacopy=on", 300);
        survives(dialect, "volatile,rename_dir=redirect,metacopy=on", 400);
    }
}

/// A rename of a large directory alone, killed at any moment of it.
fn killed_rename(options: &str, seed: u64) {
    let items: Vec<String> = (0..400)
        .map(|n| format!("d/s{}/f{n}={}", n % 7, "y".repeat(5000)))
        .collect();
    let mut random = Random(seed);
    for n in 0..rounds() {
        let mut m = Stack::new()
            .upper(["d/s1/up", "d/s2/wh(f2)", "t/"])
            .lower(items.clone())
            .mount_with(options);
        let before = shown(&m.p("d"));
        let pid = Pid::from_raw(m.pid()).unwrap();
        let (from, to) = (m.p("d"), m.p("t/e"));
        let delay = Duration::from_micros(random.below(80_000));
        let mut told = Told(format!(
            "{options}, round {n}: {pid:?} to be killed after {delay:?}"
        ));
        let worker = thread::spawn(move || rustix::fs::rename(from, to));
        thread::sleep(delay);
        kill_process(pid, Signal::KILL).unwrap();
        let done = worker.join().unwrap();
        told.0 = format!("{}, the rename: {done:?}", told.0);
        rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
        m.ended().unwrap();
        m.mount_again();
        let is_there = |name: &str| fs::symlink_metadata(m.p(name)).is_ok();
        let (old, new) = (is_there("d"), is_there("t/e"));
        assert!(old != new, "old name: {old}, new name: {new}");
        assert!(new || done.is_err(), "the answered rename is undone");
        let at = m.p(if new { "t/e" } else { "d" });
        let left = differences(&shown(&at), &before);
        assert!(left.is_empty(), "moved: {new}: {left:#?}");
    }
}

#[test]
fn a_rename_is_killed() {
    killed_rename("rename_dir=copy", 1);
    killed_rename("rename_dir=copy,volatile", 2);
    killed_rename("rename_dir=redirect", 3);
}
