//! New processes: `fork` for the background start, and calls that must be made from outside.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::{ForkResult, Pid};

/// Which side of [`fork`] the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The process that called; the child's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Splits the process in two.
///
/// Refuses with `EBUSY` when the process already has a second thread: the child would have only
/// the calling one, with whatever locks the others held (the allocator's too) locked for ever.
pub(crate) fn fork() -> io::Result<Side> {
    if threads() > 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread (checked above; where /proc is not mounted the caller,
    // `daemon::mount`, which runs before any thread is made, vouches for it), so the child is a
    // complete copy and may do anything the parent could.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Closes every descriptor above standard error but those in `keep`.
///
/// For a process just forked, in which nothing else has been opened that is still of use: those
/// descriptors are the caller's, and nobody here knows them.
pub(crate) fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<libc::c_int> = keep.iter().map(|fd| fd.as_raw_fd()).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for fd in kept.into_iter().chain([libc::c_int::MAX]) {
        if fd > first {
            // SAFETY: by the contract above no value of this process owns one of them. Failure
            // (a kernel before 5.9) leaves them open, which costs no more than before.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// The number of threads of this process, 1 when /proc cannot tell.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// What [`apart`] can do with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// `statfs` and `stat`: succeeds when it answers, and is a FUSE mount.
    Probe,
    /// `syncfs`.
    Sync,
}

/// Does `task` with `path` in a new process, whose exit status is 0 or an errno.
///
/// A process that serves a FUSE mount must not ask that mount: when the answer never comes, the
/// asking thread cannot be killed, and as it shares the descriptor of /dev/fuse with the threads
/// that should answer, the kernel does not see the server die either. Asked from a process that
/// does not hold the descriptor, a request fails as soon as the server is gone.
pub(crate) fn apart(task: Task, path: &Path) -> io::Result<Pid> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: other threads may exist, so until `_exit` the child may only call functions that
    // are async-signal-safe. `errno_of` makes system calls, touches its own stack and `path`,
    // and allocates, locks and unwinds nowhere.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let errno = errno_of(task, &path);
            // SAFETY: `_exit` takes any number and runs no handlers.
            unsafe { libc::_exit(errno) }
        }
    }
}

/// The body of [`apart`]: 0 or an errno.
fn errno_of(task: Task, path: &CString) -> libc::c_int {
    // SAFETY: closing every descriptor is the purpose, and this process uses none that it had.
    // Done as a system call since libc's function may be missing or emulated.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return libc::ENOSYS;
    }
    let ok = match task {
        Task::Probe => {
            let mut fs = std::mem::MaybeUninit::<libc::statfs>::zeroed();
            // SAFETY: `path` ends with NUL and `fs` has room for the answer.
            if unsafe { libc::statfs(path.as_ptr(), fs.as_mut_ptr()) } != 0 {
                return last_errno();
            }
            // SAFETY: all-zero is a valid statfs, and the call above has filled it.
            if unsafe { fs.assume_init() }.f_type != libc::FUSE_SUPER_MAGIC {
                return libc::ENODEV;
            }
            let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
            // SAFETY: as above.
            unsafe { libc::stat(path.as_ptr(), stat.as_mut_ptr()) == 0 }
        }
        Task::Sync => {
            // SAFETY: `path` ends with NUL.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY) };
            // SAFETY: takes any number; a bad one is EBADF. `_exit` closes it.
            fd >= 0 && unsafe { libc::syncfs(fd) == 0 }
        }
    };
    if ok { 0 } else { last_errno() }
}

fn last_errno() -> libc::c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness itself has more than one thread: its main and this one.
        let error = fork().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }

    fn status(task: Task, path: &Path) -> i32 {
        let child = apart(task, path).unwrap();
        match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tasks_apart_report_an_errno() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert_eq!(status(Task::Sync, dir.path()), 0);
        assert_eq!(status(Task::Sync, &missing), libc::ENOENT);
        assert_eq!(status(Task::Probe, &missing), libc::ENOENT);
        // It answers, but is no FUSE mount.
        assert_eq!(status(Task::Probe, dir.path()), libc::ENODEV);
        assert!(apart(Task::Probe, Path::new("/a\0b")).is_err());
    }
}
