//! The tests that anyone can run, run by an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The user `daemon`, which every Linux system has.
const USER: u32 = 1;

/// /dev/fuse open to users for a while, as it is on most systems; tests and test programs take turns.
struct Device {
    before: u32,
    _turn: std::os::fd::OwnedFd,
}

impl Device {
    fn open_to_users() -> Self {
        let lock = Path::new("/tmp/unionfs-dev-fuse.lock");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let turn = rustix::fs::open(lock, flags, Mode::RWXU).unwrap();
        rustix::fs::flock(&turn, FlockOperation::LockExclusive).unwrap();
        let before = fs::metadata("/dev/fuse").unwrap().permissions().mode();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self {
            before,
            _turn: turn,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.before));
    }
}

/// Runs the tests of `anyone` as the user, by a copy of this program that he can reach.
fn as_user(wrapper: &[&str]) {
    let temp = tempfile::Builder::new()
        .prefix("unionfs-test-")
        .tempdir()
        .unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: PathBuf, name: &str| {
        let to = temp.path().join(name);
        // Not by this process, whose forks would hold it open for writing while it is to be run.
        let copied = Command::new("cp").arg(from).arg(&to).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let tests = copy(std::env::current_exe().unwrap(), "tests");
    let program = copy(env!("CARGO_BIN_EXE_unionfs").into(), "unionfs");
    let own = temp.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(USER), Some(USER)).unwrap();
    let _device = Device::open_to_users();
    let output = Command::new("timeout")
        .args(["-k5", "120", "setpriv", "--clear-groups"])
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .args(wrapper)
        .arg(tests)
        .arg("anyone::")
        .env("TMPDIR", &own)
        .env("UNIONFS_TEST_PROGRAM", program)
        .current_dir(&own)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    let line = told.lines().find(|line| line.starts_with("test result: "));
    let passed = line.and_then(|line| line.split(' ').nth(3)?.parse::<usize>().ok());
    assert!(passed > Some(20), "{all}");
    let left = fs::read_dir(&own).unwrap().count();
    assert_eq!(left, 0, "left by the tests: {all}");
}

#[test]
fn through_fusermount3() {
    as_user(&[]);
}

#[test]
fn in_a_user_namespace() {
    as_user(&["unshare", "-Urm"]);
}
