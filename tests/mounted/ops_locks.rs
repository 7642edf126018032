//! Locks between processes, as the kernel keeps them.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, flock};
use rustix::io::Errno;

use crate::process::{following, wait_for};
use crate::support::{Mount, Stack};

/// Opens the file in a new process, tries a lock there and gives the error number, or 0.
fn in_another_process(m: &Mount, name: &str, lock: fn(&OwnedFd) -> rustix::io::Result<()>) -> i32 {
    let path = CString::new(m.p(name).as_os_str().as_bytes()).unwrap();
    // SAFETY: the child only makes system calls on what is ready before, then ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let fd = crate::process::open_file(&path, OFlags::RDWR, Mode::empty());
        let answer = fd.and_then(|fd| lock(&fd));
        let code = answer.err().map_or(0, Errno::raw_os_error);
        // SAFETY: ends the child without running anything of the test.
        unsafe { libc::_exit(code) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status));
    libc::WEXITSTATUS(status)
}

/// The lock can be had, now or as soon as processes just forked by other tests have let go of their
/// copies of the descriptor.
#[track_caller]
fn closing_has_unlocked(m: &Mount, name: &str, lock: fn(&OwnedFd) -> rustix::io::Result<()>) {
    let free = || (in_another_process(m, name, lock) == 0).then_some(());
    assert!(wait_for(Duration::from_secs(5), free).is_some(), "{name}");
}

const BUSY: i32 = 11;

fn shared(fd: &OwnedFd) -> rustix::io::Result<()> {
    flock(fd, FlockOperation::NonBlockingLockShared)
}

fn exclusive(fd: &OwnedFd) -> rustix::io::Result<()> {
    flock(fd, FlockOperation::NonBlockingLockExclusive)
}

fn record_shared(fd: &OwnedFd) -> rustix::io::Result<()> {
    fcntl_lock(fd, FlockOperation::NonBlockingLockShared)
}

fn record_exclusive(fd: &OwnedFd) -> rustix::io::Result<()> {
    fcntl_lock(fd, FlockOperation::NonBlockingLockExclusive)
}

#[test]
fn flock_between_processes() {
    let m = Stack::new()
        .upper(["u"])
        .lower(["l"])
        .mount_with(following());
    for name in ["u", "l"] {
        let fd = m.open(name, OFlags::RDONLY).unwrap();
        flock(&fd, FlockOperation::LockShared).unwrap();
        assert_eq!(in_another_process(&m, name, shared), 0);
        assert_eq!(in_another_process(&m, name, exclusive), BUSY);
        flock(&fd, FlockOperation::LockExclusive).unwrap();
        assert_eq!(in_another_process(&m, name, shared), BUSY);
        let second = m.open(name, OFlags::RDWR).unwrap();
        assert_eq!(
            exclusive(&second),
            Err(Errno::AGAIN),
            "locks belong to the open file"
        );
        flock(&fd, FlockOperation::Unlock).unwrap();
        exclusive(&second).unwrap();
        assert_eq!(in_another_process(&m, name, exclusive), BUSY);
        drop(second);
        closing_has_unlocked(&m, name, exclusive);
    }
}

#[test]
fn record_locks_between_processes() {
    let m = Stack::new().upper(["u"]).lower(["l"]).mount();
    for name in ["u", "l"] {
        let fd = m.open(name, OFlags::RDWR).unwrap();
        record_shared(&fd).unwrap();
        assert_eq!(in_another_process(&m, name, record_shared), 0);
        assert_eq!(in_another_process(&m, name, record_exclusive), BUSY);
        record_exclusive(&fd).unwrap();
        assert_eq!(in_another_process(&m, name, record_shared), BUSY);
        assert_eq!(
            in_another_process(&m, name, exclusive),
            0,
            "the two kinds are apart"
        );
        drop(fd);
        closing_has_unlocked(&m, name, record_exclusive);
    }
}

/// A lock taken on the lower file holds against those who open it after its copy-up.
#[test]
fn lock_survives_copy_up() {
    let m = Stack::new().lower(["f"]).mount_with(following());
    let fd = m.open("f", OFlags::RDONLY).unwrap();
    flock(&fd, FlockOperation::LockExclusive).unwrap();
    m.chmod("f", 0o666).unwrap();
    m.write("f", "new").unwrap();
    assert_eq!(in_another_process(&m, "f", exclusive), BUSY);
    drop(fd);
    closing_has_unlocked(&m, "f", exclusive);
}

#[test]
fn waiting_for_a_lock() {
    let m = Stack::new().lower(["f"]).mount();
    let fd = m.open("f", OFlags::RDWR).unwrap();
    let other = m.open("f", OFlags::RDWR).unwrap();
    flock(&fd, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| flock(&other, FlockOperation::LockExclusive));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiter.is_finished());
        flock(&fd, FlockOperation::Unlock).unwrap();
        waiter.join().unwrap().unwrap();
    });
}
