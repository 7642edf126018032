//! `unionfs demo` as root, as an ordinary user, and where nobody may mount.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;

use super::support::{Outcome, eventually, processes_naming, program, run, signal, wait};

const DEVICE: &str = "/dev/fuse";
const NOBODY: u32 = 65534;

/// A directory for temporary files, which must be empty afterwards.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::set_permissions(dir.path().join("tmp"), Permissions::from_mode(0o777)).unwrap();
        Self(dir)
    }

    fn tmp(&self) -> PathBuf {
        self.0.path().join("tmp")
    }

    fn is_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.tmp()).unwrap().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(processes_naming(self.0.path()).is_empty());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.0.path().to_str().unwrap()),
            "{mounts}"
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only after a failed test is anything mounted here.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for place in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(place).starts_with(self.0.path()) {
                let _ = umount2(place, MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Changes the mode of the device for as long as it lives, one test at a time.
struct DeviceMode {
    before: Permissions,
    _lock: Flock<File>,
}

impl DeviceMode {
    fn set(mode: u32) -> Self {
        assert!(
            geteuid().is_root(),
            "this test needs root, to change the mode of {DEVICE}"
        );
        // One name for all test programs: the device is the machine's.
        let path = Path::new("/tmp/unionfs-dev-fuse.lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .unwrap();
        let before = fs::metadata(DEVICE)
            .expect("the device is there")
            .permissions();
        fs::set_permissions(DEVICE, Permissions::from_mode(mode)).unwrap();
        Self {
            before,
            _lock: lock,
        }
    }
}

impl Drop for DeviceMode {
    fn drop(&mut self) {
        fs::set_permissions(DEVICE, self.before.clone()).unwrap();
    }
}

fn shows_everything(outcome: &Outcome) {
    for words in [
        "== Merging ==",
        "from lower 1, hides that of lower 2",
        "== Copy-up ==",
        "== Whiteout ==",
        "whiteout: hides guide.txt",
        "== Opaque directory ==",
        "opaque: hides the lowers here",
        "== The end ==",
    ] {
        assert!(
            outcome.good().stdout.contains(words),
            "{words} is not in:\n{}",
            outcome.stdout
        );
    }
}

/// The program where an ordinary user can run it: build directories are often private.
fn as_nobody(place: &Place) -> Command {
    let copy = place.0.path().join("unionfs");
    // Not by this process, whose forks would hold it open for writing while it is to be run.
    let program = env!("CARGO_BIN_EXE_unionfs");
    let copied = Command::new("cp").arg(program).arg(&copy).status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(copy);
    command
        .arg("demo")
        .env("TMPDIR", place.tmp())
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY);
    command
}

#[test]
fn as_root() {
    let place = Place::new();
    let outcome = run(program()
        .arg("demo")
        .env("TMPDIR", place.tmp())
        .env("LC_ALL", "C.UTF-8"));
    shows_everything(&outcome);
    assert!(
        outcome.stdout.contains("\u{2514}\u{2500}\u{2500} "),
        "{}",
        outcome.stdout
    );
    assert!(!outcome.stdout.contains('\x1b'), "colours in a pipe");
    let plain = run(program()
        .arg("demo")
        .env("TMPDIR", place.tmp())
        .env("LC_ALL", "C"));
    shows_everything(&plain);
    assert!(plain.stdout.is_ascii());
    place.is_clean();
}

#[test]
fn as_an_ordinary_user_by_fusermount3() {
    let _mode = DeviceMode::set(0o666);
    let place = Place::new();
    let outcome = run(&mut as_nobody(&place));
    shows_everything(&outcome);
    assert!(
        outcome.stdout.contains("by fusermount3"),
        "{}",
        outcome.stdout
    );
    place.is_clean();
}

#[test]
fn as_an_ordinary_user_in_a_user_namespace() {
    let _mode = DeviceMode::set(0o666);
    let place = Place::new();
    // Without the helper only the namespace is left.
    let outcome = run(as_nobody(&place).env("FUSERMOUNT_PATH", "/nonexistent"));
    shows_everything(&outcome);
    assert!(
        outcome.stdout.contains("in a user namespace"),
        "{}",
        outcome.stdout
    );
    place.is_clean();
}

#[test]
fn where_nobody_may_mount_it_says_what_is_missing() {
    let _mode = DeviceMode::set(0o600);
    let place = Place::new();
    let outcome = run(&mut as_nobody(&place));
    let line = outcome.complaint();
    assert!(line.contains("/dev/fuse cannot be opened"), "{line}");
    assert!(line.contains("chmod 0666 /dev/fuse"), "{line}");
    place.is_clean();
}

#[test]
fn interrupted_it_cleans_up() {
    for delay_ms in [0, 5, 15, 30, 60] {
        let place = Place::new();
        let mut child = program()
            .arg("demo")
            .env("TMPDIR", place.tmp())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it has begun", || {
            fs::read_dir(place.tmp()).unwrap().count() > 0 || child_ended(child.id())
        });
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(child.id(), Signal::SIGINT);
        let code = wait(&mut child).code();
        // It may have been done already.
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        place.is_clean();
    }
}

fn child_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_none_or(|rest| rest.starts_with('Z'))
}

#[test]
fn a_screen_that_is_gone_is_an_error() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = program()
        .arg("demo")
        .env("TMPDIR", place.tmp())
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut child).code(), Some(1));
    place.is_clean();
}
