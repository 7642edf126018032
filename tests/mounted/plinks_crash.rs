//! The daemon dies at every step of a change (to linked files, or of the removal of a directory with
//! markers), and at random moments: what is found
//! then is the old or the new state of the one change under way, and all before it is intact.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::plinks::{entries_in, list};
use crate::process::{abort, device_of, finish, held_elsewhere, unionfs, wait_for};
use crate::random::Random;

/// Calls that change something on disk.
const CALLS: &str = "linkat,symlinkat,unlinkat,renameat,renameat2,mkdirat,mknodat,setxattr,lsetxattr,\
                     fsetxattr,removexattr,lremovexattr,fremovexattr,ftruncate,fchownat,utimensat,\
                     fsync";
/// More of them than any change here needs.
const MOST_CALLS: u32 = 60;

/// Every file's path, with its content and the first path that is the same file.
type Shape = BTreeMap<PathBuf, (String, PathBuf)>;

/// The tree as users see it; link counts are those of the names in it.
fn shape(root: &Path) -> Shape {
    let mut files = Vec::new();
    let mut dirs = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                dirs.push(path.strip_prefix(root).unwrap().to_owned());
                pending.push(path);
            } else {
                let content = if meta.is_file() {
                    fs::read_to_string(&path).unwrap()
                } else {
                    format!("{:o}", meta.permissions().mode())
                };
                let name = path.strip_prefix(root).unwrap().to_owned();
                files.push((name, content, meta.ino(), meta.nlink()));
            }
        }
    }
    files.sort();
    let mut first: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (name, _, ino, _) in &files {
        first.entry(*ino).or_insert_with(|| (name.clone(), 0)).1 += 1;
    }
    for (name, _, ino, nlink) in &files {
        assert_eq!(*nlink, first[ino].1, "link count of {}", name.display());
    }
    let entry = |(name, content, ino, _): (PathBuf, String, u64, u64)| {
        let same = first[&ino].0.clone();
        (name, (content, same))
    };
    let directory = |name: PathBuf| (name.clone(), ("a directory".to_owned(), name));
    let dirs = dirs.into_iter().map(directory);
    files.into_iter().map(entry).chain(dirs).collect()
}

/// Starts a program that says nothing to us.
fn quiet(command: &mut Command) -> Child {
    let silent = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    silent
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// A daemon and its mount; both are gone after a failure, too.
struct Daemon {
    child: Child,
    mnt: PathBuf,
}

impl Daemon {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end of a daemon whose mount was or is now taken away.
    fn end(mut self) {
        let connection = device_of(&self.mnt);
        let unmount = || match rustix::mount::unmount(&self.mnt, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => None,
            _ => Some(()),
        };
        wait_for(Duration::from_secs(10), unmount).expect("the mount stays busy");
        let mut is_gone = || self.child.try_wait().unwrap();
        let mut gone = wait_for(Duration::from_secs(15), &mut is_gone);
        if let (None, Some(connection)) = (&gone, connection.filter(|&c| held_elsewhere(c))) {
            // Somebody's `unshare -m` of the meantime has a copy of the mount, nobody knows for how long.
            abort(connection);
            gone = wait_for(Duration::from_secs(15), is_gone);
        }
        assert!(gone.is_some(), "the daemon does not end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::DETACH);
    }
}

/// A union and a plain directory that is its expectation.
struct Both {
    dir: TempDir,
    options: String,
}

impl Both {
    fn new(options: &str, fill: impl Fn(&Path)) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "mnt", "plain"] {
            fs::create_dir(at(name)).unwrap();
        }
        fill(&at("lower"));
        fill(&at("plain"));
        let layers = format!(
            "lowerdir={},upperdir={}{options}",
            at("lower").display(),
            at("upper").display()
        );
        Self {
            dir,
            options: layers,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon, in the foreground.
    fn start(&self) -> Daemon {
        let mut command = Command::new(unionfs());
        command
            .args(["-f", "-o", &self.options])
            .arg(self.at("mnt"));
        let mnt = self.at("mnt");
        let daemon = Daemon {
            child: quiet(&mut command),
            mnt,
        };
        let mounted = wait_for(Duration::from_secs(15), || device_of(&daemon.mnt));
        mounted.unwrap_or_else(|| panic!("{command:?} does not mount"));
        daemon
    }

    fn plain_shape(&self) -> Shape {
        shape(&self.at("plain"))
    }

    /// What a new mount shows, which must also be all that is left in the upper.
    fn look(&self) -> Shape {
        let child = self.start();
        let seen = shape(&self.at("mnt"));
        let listed = list(&self.at("mnt"));
        for line in &listed {
            let (_, path) = line.split_once('\t').unwrap();
            assert!(seen.contains_key(Path::new(path)), "{line}");
        }
        child.end();
        for entry in entries_in(&self.at("upper")) {
            let (number, copy) = entry.name.split_once('.').unwrap();
            assert_ne!(number, "0", "a note is left");
            let is_listed = listed.iter().any(|l| l.starts_with(&format!("{number}\t")));
            assert!(copy == "0" || is_listed, "{} has no name", entry.name);
        }
        let orphans = fs::read_dir(self.at("upper/.wh..wh.orph"));
        assert_eq!(orphans.map_or(0, Iterator::count), 0, "orphans are left");
        seen
    }
}

/// Has calls of the daemon fail or kill it from now on, as strace's `inject=` says.
fn watch(daemon: &Daemon, calls: &str, inject: &str) -> Child {
    let pid = daemon.child.id();
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
    command.args(["-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:{inject}")]);
    let strace = quiet(&mut command);
    let traced = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status"));
        let by_strace = format!("TracerPid:\t{}\n", strace.id());
        let mut all = tasks.flatten().map(|task| status(task).unwrap_or_default());
        all.all(|status| status.contains(&by_strace)).then_some(())
    };
    wait_for(Duration::from_secs(10), traced).expect("strace does not attach to the daemon");
    strace
}

/// A change, as the kernel would ask for it; the answer does not matter.
#[derive(Clone, Debug)]
enum Change {
    Append(&'static str),
    Chmod(&'static str),
    Empty(&'static str),
    Cut(&'static str),
    Unlink(&'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Link(&'static str, &'static str),
    Make(&'static str),
    Rmdir(&'static str),
    /// `unionfs plink flush`, which changes nothing that users see.
    Flush,
}

impl Change {
    fn run(&self, root: &Path) -> rustix::io::Result<()> {
        let at = |name: &str| root.join(name);
        match self {
            Self::Append(name) => {
                let fd = open(&at(name), OFlags::WRONLY | OFlags::APPEND)?;
                rustix::io::write(fd, b"+").map(drop)
            }
            Self::Chmod(name) => rustix::fs::chmod(at(name), Mode::from_raw_mode(0o600)),
            Self::Empty(name) => open(&at(name), OFlags::WRONLY | OFlags::TRUNC).map(drop),
            Self::Cut(name) => {
                // By its path: an open would bring all of it first.
                let done = Command::new("python3")
                    .args(["-c", CUT])
                    .arg(at(name))
                    .status();
                if done.is_ok_and(|status| status.success()) {
                    Ok(())
                } else {
                    Err(rustix::io::Errno::IO)
                }
            }
            Self::Unlink(name) => rustix::fs::unlink(at(name)),
            Self::Rename(from, to) => rustix::fs::rename(at(from), at(to)),
            Self::Exchange(one, other) => {
                let flags = RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, at(one), CWD, at(other), flags)
            }
            Self::Link(from, to) => rustix::fs::link(at(from), at(to)),
            Self::Rmdir(name) => rustix::fs::rmdir(at(name)),
            Self::Flush => flush(root),
            Self::Make(name) => open(&at(name), OFlags::CREATE | OFlags::WRONLY).map(drop),
        }
    }
}

fn flush(root: &Path) -> rustix::io::Result<()> {
    let is_union = device_of(root).is_some();
    let ok = || {
        finish(Command::new(unionfs()).args(["plink", "flush"]).arg(root))
            .status
            .success()
    };
    if !is_union || ok() {
        Ok(())
    } else {
        Err(rustix::io::Errno::IO)
    }
}

const CUT: &str = "import os, sys; os.truncate(sys.argv[1], 100)";

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<rustix::fd::OwnedFd> {
    crate::process::open_file(path, flags, Mode::from_raw_mode(0o644))
}

fn fill(root: &Path) {
    for dir in ["d", "k", "k/in"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    fs::write(root.join("k/in/f"), "f").unwrap();
    fs::write(root.join("a"), "a").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    fs::hard_link(root.join("a"), root.join("d/c")).unwrap();
    fs::write(root.join("x"), "x").unwrap();
    fs::write(root.join("p"), "p").unwrap();
    fs::hard_link(root.join("p"), root.join("d/q")).unwrap();
    fs::write(root.join("large"), "large".repeat(10_000)).unwrap();
}

/// Dies before the n-th changing call of a thread, for every n, until the change comes through.
fn at_every_step(options: &str, before: &[Change], change: &Change) {
    for step in 1..=MOST_CALLS {
        let both = Both::new(options, fill);
        let child = both.start();
        for change in before {
            change.run(&both.at("mnt")).unwrap();
            change.run(&both.at("plain")).unwrap();
        }
        child.end();
        let old = both.plain_shape();
        let child = both.start();
        // All names are known then.
        let _ = shape(&both.at("mnt"));
        let mut strace = watch(&child, CALLS, &format!("signal=SIGKILL:when={step}"));
        let through = change.run(&both.at("mnt")).is_ok();
        if through {
            // It lets go of the daemon.
            rustix::process::kill_process(Pid::from_child(&strace), Signal::TERM).unwrap();
            strace.wait().unwrap();
            child.end();
        } else {
            // It waits for us to take note of the daemon's end.
            child.end();
            let _ = strace.kill();
            strace.wait().unwrap();
        }
        change.run(&both.at("plain")).unwrap();
        let new = both.plain_shape();
        let seen = both.look();
        let text = format!("step {step} of {change:?} after {before:?}");
        if through {
            assert_eq!(seen, new, "{text}");
            assert!(step > 1, "{text}: nothing was changed");
            return;
        }
        assert!(seen == old || seen == new, "{text}: {seen:?}");
    }
    panic!("{change:?} does not come to its end");
}

const CASES: &[(&[Change], Change)] = {
    use Change::{Append, Chmod, Exchange, Flush, Link, Make, Rename, Rmdir, Unlink};
    &[
        (&[], Chmod("a")),
        (&[], Unlink("b")),
        (&[Unlink("b")], Chmod("a")),
        (&[Unlink("p")], Unlink("d/q")),
        (&[], Rename("a", "n")),
        (&[], Rename("x", "b")),
        (&[], Exchange("x", "d/c")),
        (&[], Link("a", "d/n")),
        (&[Append("a")], Unlink("a")),
        (&[Append("a")], Unlink("d/c")),
        (&[Append("a")], Rename("d/c", "n")),
        (&[Append("a")], Rename("x", "d/c")),
        (&[Append("p"), Unlink("p")], Unlink("d/q")),
        (&[Append("p"), Unlink("p")], Rename("x", "d/q")),
        (&[Append("p"), Unlink("d/q")], Make("d/q")),
        (&[Append("a")], Flush),
        (&[Append("a"), Append("p"), Unlink("p")], Flush),
        (&[], Rename("d", "moved")),
        (&[Append("a")], Rename("d", "moved")),
        (&[Unlink("k/in/f"), Rmdir("k/in")], Rmdir("k")),
        (&[Unlink("k/in/f")], Rmdir("k/in")),
    ]
};

#[test]
fn killed_at_every_step() {
    for (before, change) in CASES {
        at_every_step("", before, change);
    }
}

#[test]
fn killed_at_every_step_with_overlay_whiteouts() {
    for (before, change) in CASES.iter().step_by(2) {
        at_every_step(",whiteout=overlay", before, change);
    }
}

/// A file whose data are still the lower's is emptied, or gets its data: never zeros in between.
#[test]
fn killed_at_every_step_with_data_in_the_lower() {
    use Change::{Append, Chmod, Cut, Empty};
    for change in [Empty("large"), Cut("large"), Append("large")] {
        at_every_step(",metacopy=on", &[Chmod("large")], &change);
    }
}

const NAMES: [&str; 12] = [
    "a", "b", "c", "e", "d/a", "d/b", "d/c", "d/e", "f/a", "f/b", "f/c", "f/e",
];

fn fill_more(root: &Path) {
    for dir in ["d", "f"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for (at, group) in NAMES.chunks(4).enumerate() {
        let first = root.join(group[0]);
        fs::write(&first, format!("{at}")).unwrap();
        for name in &group[1..] {
            fs::hard_link(&first, root.join(name)).unwrap();
        }
    }
}

fn draw(random: &mut Random) -> Change {
    let mut name = || NAMES[random.below(NAMES.len() as u64) as usize];
    let (one, two) = (name(), name());
    match random.below(10) {
        0..3 => Change::Append(one),
        3..5 => Change::Unlink(one),
        5 => Change::Rename(one, two),
        6 => Change::Exchange(one, two),
        7..9 => Change::Link(one, two),
        _ => Change::Make(one),
    }
}

/// `UNIONFS_CRASHES` sets how often the daemon dies, `UNIONFS_CRASH_SEED` when.
#[test]
fn killed_at_random_moments() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |n| n.parse::<u64>().expect("a number"))
    };
    let mut random = Random(number("UNIONFS_CRASH_SEED", 1));
    let both = Both::new("", fill_more);
    for round in 0..number("UNIONFS_CRASHES", 30) {
        let child = both.start();
        let pid = child.pid();
        let pause = Duration::from_micros(random.below(20_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(pause);
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        });
        let under_way = loop {
            let change = draw(&mut random);
            let got = change.run(&both.at("mnt"));
            use rustix::io::Errno;
            let died = [Errno::NOTCONN, Errno::CONNABORTED, Errno::IO];
            if got.as_ref().is_err_and(|e| died.contains(e)) {
                break change;
            }
            let wanted = change.run(&both.at("plain"));
            assert_eq!(got, wanted, "round {round}: {change:?}");
        };
        killer.join().unwrap();
        drop(child);
        let seen = both.look();
        if seen != both.plain_shape() {
            let _ = under_way.run(&both.at("plain"));
            // The size of an append and the names are separate states of one change.
            assert_eq!(seen, both.plain_shape(), "round {round}: {under_way:?}");
        }
    }
    let flush = finish(
        Command::new(unionfs())
            .args(["plink", "flush", "-o", &both.options])
            .arg(both.at("upper")),
    );
    assert!(flush.status.success(), "{}", flush.stderr);
    assert_eq!(
        entries_in(&both.at("upper"))
            .iter()
            .filter(|e| !e.name.ends_with(".0"))
            .count(),
        0
    );
    assert_eq!(both.look(), both.plain_shape());
}
