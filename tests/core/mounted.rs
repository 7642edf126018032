//! The same operations by system calls on a real mount, as real users.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use unionfs::options::{Options, RenameDir, WhiteoutForm};

use crate::harness::{Disk, Subject, allowed_difference, case, compare, run_cases};
use crate::model::{Dialects, names};
use crate::ops::{Do, Outcome, Result, Side, Who};
use crate::plain::{Plain, Users, prepare_thread};
use crate::tree::{self, Seen, Tree, join, show};

/// A call of a program that mounts or unmounts takes at most this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// A whole case takes at most this long.
const CASE_PATIENCE: Duration = Duration::from_secs(120);

/// How a directory is mounted and unmounted.
pub trait Mounter {
    fn mount(&self, at: &Path);
    fn unmount(&self, at: &Path);
    /// Every name gets its own place in the upper, where that has a meaning.
    fn flush(&self, _at: &Path) {}
    /// Differences that are allowed; the reason is in the text.
    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str>;
    /// The tree as users see it.
    fn scan(&self, at: &Path) -> Tree {
        tree::scan(at)
    }
    /// True when reserved names are to be hidden.
    fn hides_reserved(&self) -> bool;
}

/// Something mounted, as users see it.
pub struct Mounted {
    mounter: Box<dyn Mounter>,
    at: PathBuf,
    plain: Plain,
    mounted: bool,
}

impl Mounted {
    pub fn new(mounter: Box<dyn Mounter>, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mounter.mount(at);
        Self {
            mounter,
            at: at.to_owned(),
            plain: Plain::new(at, Users::Real),
            mounted: true,
        }
    }

    pub fn unmount(&mut self) {
        self.plain.kept.clear();
        self.mounted = false;
        self.mounter.unmount(&self.at);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // A test has failed; nothing may stay behind.
            self.plain.kept.clear();
            let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Side for Mounted {
    fn run(&mut self, who: Who, what: &Do) -> Result {
        match what {
            Do::Remount => {
                self.unmount();
                self.mounter.mount(&self.at);
                self.mounted = true;
                Ok(Outcome::Done)
            }
            Do::Flush => {
                self.mounter.flush(&self.at);
                Ok(Outcome::Done)
            }
            Do::Forget => {
                // The kernel forgets what is not in use; the figure is its own name for that.
                std::fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches needs root");
                Ok(Outcome::Done)
            }
            what => self.plain.run(who, what),
        }
    }
}

impl Subject for Mounted {
    fn tree(&mut self) -> Tree {
        self.mounter.scan(&self.at)
    }

    fn kept(&mut self, index: usize) -> Seen {
        use std::os::fd::AsRawFd;
        let fd = self.plain.kept[index].as_raw_fd();
        tree::look_through(Path::new(&format!("/proc/self/fd/{fd}")))
    }

    fn check(&mut self, expected: &Tree) {
        let reserved = [&b".wh."[..], b".wh.a", b".wh..wh..opq", b".wh..wh.orph"];
        for (dir, _) in expected
            .iter()
            .filter(|(_, s)| s.kind == FileType::Directory)
        {
            let mut path = dir.clone();
            for name in names() {
                path.push(name);
                let found = rustix::fs::lstat(join(&self.at, &path)).is_ok();
                assert_eq!(
                    found,
                    expected.contains_key(&path),
                    "lookup of {}",
                    show(&path)
                );
                path.pop();
            }
            for name in reserved.iter().filter(|_| self.mounter.hides_reserved()) {
                path.push(name.to_vec());
                let found = rustix::fs::lstat(join(&self.at, &path));
                assert_eq!(found.err(), Some(Errno::NOENT), "lookup of {}", show(&path));
                path.pop();
            }
        }
    }

    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str> {
        self.mounter.allowed(what, result)
    }
}

/// Runs a program to its end, for so long as is reasonable; it must succeed.
pub fn run(command: &mut Command) {
    let start = Instant::now();
    let (status, text) = outcome(command);
    let took = start.elapsed();
    assert!(
        status.success(),
        "{command:?}: {status} after {took:?}: {text}"
    );
}

/// The same for a program that unmounts: a process which another test has just forked may hold a
/// copy of a descriptor for a moment.
fn run_until_free(command: &mut Command) {
    let start = Instant::now();
    loop {
        let (status, text) = outcome(command);
        if status.success() {
            return;
        }
        assert!(
            text.contains("busy") && start.elapsed() < PATIENCE,
            "{command:?}: {status}: {text}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn outcome(command: &mut Command) -> (ExitStatus, String) {
    // Into a file: a daemon that inherited a pipe would keep it open.
    let mut said = tempfile::tempfile().unwrap();
    let stderr = said.try_clone().unwrap();
    let mut child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut text = String::new();
            said.rewind().unwrap();
            said.read_to_string(&mut text).unwrap();
            return (status, text);
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Breaks the connection of a mount whose case does not end, so that the test fails instead of
/// hanging.
struct Watchdog(Option<Sender<()>>);

impl Watchdog {
    fn over(at: &Path) -> Self {
        let (done, over) = channel::<()>();
        let dev = rustix::fs::stat(at).unwrap().st_dev;
        std::thread::spawn(move || {
            let timed_out = std::sync::mpsc::RecvTimeoutError::Timeout;
            if over.recv_timeout(CASE_PATIENCE) == Err(timed_out) {
                let minor = rustix::fs::minor(dev);
                let abort = format!("/sys/fs/fuse/connections/{minor}/abort");
                let result = std::fs::write(&abort, "1");
                eprintln!("the mount hangs: wrote {abort}: {result:?}");
            }
        });
        Self(Some(done))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// The built binary.
struct Binary {
    options: Options,
}

impl Binary {
    fn option_text(&self) -> String {
        let Options {
            lowers,
            upper,
            work,
            whiteout,
            volatile,
            rename_dir,
            metacopy,
            ..
        } = &self.options;
        let lowers: Vec<_> = lowers
            .iter()
            .map(|l| l.path.display().to_string())
            .collect();
        let mut text = format!("lowerdir={}", lowers.join(":"));
        for (option, path) in [("upperdir", upper), ("workdir", work)] {
            if let Some(path) = path {
                text.push_str(&format!(",{option}={}", path.display()));
            }
        }
        if *whiteout == WhiteoutForm::Overlay {
            text.push_str(",whiteout=overlay");
        }
        if *volatile {
            text.push_str(",volatile");
        }
        text.push_str(match rename_dir {
            RenameDir::Copy => "",
            RenameDir::Redirect => ",rename_dir=redirect",
            RenameDir::Exdev => ",rename_dir=exdev",
        });
        if *metacopy {
            text.push_str(",metacopy=on");
        }
        if let Ok(way) = std::env::var("UNIONFS_TEST_OPEN") {
            text.push_str(&format!(",open={way}"));
        }
        text
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_unionfs");

impl Mounter for Binary {
    fn flush(&self, at: &Path) {
        run(Command::new(PROGRAM).args(["plink", "flush"]).arg(at));
    }

    fn mount(&self, at: &Path) {
        run(Command::new(PROGRAM)
            .arg("mount")
            .arg("-o")
            .arg(self.option_text())
            .arg(at));
    }

    fn unmount(&self, at: &Path) {
        run_until_free(Command::new(PROGRAM).arg("umount").arg(at));
    }

    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str> {
        allowed_difference(what, result)
    }

    fn hides_reserved(&self) -> bool {
        true
    }
}

#[test]
fn random_operations_do_the_same_to_a_mount_and_to_a_plain_directory() {
    prepare_thread();
    run_cases(
        "tests/core/mounted.proptest-regressions",
        &case(Dialects::All, 40),
        25,
        |case| {
            let disk = Disk::new(case);
            let at = disk.base.path().join("mnt");
            let options = disk.options.clone();
            let mut mounted = Mounted::new(Box::new(Binary { options }), &at);
            let watchdog = Watchdog::over(&at);
            let mut oracle = Plain::new(&disk.oracle, Users::Real);
            compare(&mut mounted, &mut oracle, &disk.oracle, &case.steps);
            drop(watchdog);
            mounted.unmount();
            disk.raw.check_unchanged();
        },
    );
}
