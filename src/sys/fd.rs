//! Descriptors: reopening, locking, limits.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use smallvec::SmallVec;

use super::{Errno, Result};

/// A path under /proc/self/fd, on the stack.
pub(crate) type ProcPath = SmallVec<[u8; 320]>;

/// `/proc/self/fd/N`: the magic link of a descriptor, usable where a call takes no O_PATH handle.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> ProcPath {
    let mut path = ProcPath::new();
    // Writing into a SmallVec cannot fail.
    let _ = write!(path, "/proc/self/fd/{}", fd.as_raw_fd());
    path
}

/// `/proc/self/fd/N/NAME`, or the descriptor's own magic link when the name is empty.
pub(crate) fn proc_path_at(dir: BorrowedFd<'_>, name: &[u8]) -> ProcPath {
    let mut path = proc_path(dir);
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// A descriptor that is good for nothing but being closed.
pub(crate) fn nothing() -> Result<OwnedFd> {
    rustix::fs::memfd_create(c"nothing", rustix::fs::MemfdFlags::CLOEXEC)
}

/// Opens the object behind an O_PATH handle anew, with real access.
pub(crate) fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    let path = proc_path(fd.as_fd());
    rustix::fs::openat(CWD, path.as_slice(), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory handle for reading its entries or for fsync.
pub(crate) fn reopen_dir(fd: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(fd, c".", flags, Mode::empty())
}

/// Closes a copy of a descriptor, which has some filesystems tell what went wrong with writes.
pub(crate) fn close_a_copy(fd: impl AsFd) -> Result<()> {
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 0)?.into_raw_fd();
    // SAFETY: the copy is ours alone, and is closed once: whatever close(2) returns, it is gone.
    match unsafe { libc::close(copy) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// True when a descriptor was opened with O_APPEND.
pub(crate) fn is_append(fd: impl AsFd) -> Result<bool> {
    Ok(rustix::fs::fcntl_getfl(fd)?.contains(OFlags::APPEND))
}

/// True when a descriptor was opened for writing, and not for its place alone.
pub(crate) fn is_writable(fd: impl AsFd) -> Result<bool> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(!flags.contains(OFlags::PATH) && flags.intersects(OFlags::RDWR | OFlags::WRONLY))
}

/// True when there is something to read at this moment; false when that cannot be told.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&fd, PollFlags::IN)];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut asked, Some(&none)).is_ok()
        && asked[0].revents().contains(PollFlags::IN)
}

/// Takes an exclusive lock; EWOULDBLOCK when another open file still holds it after `patience`.
pub(crate) fn lock_within(fd: impl AsFd, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Gives this thread a table of descriptors of its own, with standard input, output and error only; other
/// threads keep theirs.
///
/// The caller vouches that nothing in this thread, from now on, uses a descriptor that it had, and that
/// none of what it opens goes to another thread.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub(crate) fn own_table() -> Result<()> {
    const UNSHARE: libc::c_uint = 2;
    let first = libc::STDERR_FILENO + 1;
    // SAFETY: by the contract above. The table of the other threads is not touched (CLOSE_RANGE_UNSHARE).
    match unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, UNSHARE) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// How many descriptors this process may have open.
pub(crate) fn fd_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current.unwrap_or(1 << 20)
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit in force.
pub(crate) fn raise_fd_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match rustix::process::setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum.unwrap_or(1 << 20),
        Err(_) => limit.current.unwrap_or(1024),
    }
}

/// Makes room for so many descriptors, where that can be had. A process of several threads that opens more
/// than it had room for waits each time until no processor looks at the old table (synchronize_rcu in the
/// kernel's expand_fdtable): measured 10 to 20 ms at 256, 512, 1024 and 2048 descriptors, which was a fifth
/// of the time in which 5000 files were made. Before the first thread it costs nothing.
pub(crate) fn make_room(count: u64) {
    let Ok(last) = i32::try_from(count.min(fd_limit()).saturating_sub(1)) else {
        return;
    };
    if let Ok(any) = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        // At this number or the next free one; it is closed again, and the table does not shrink.
        drop(rustix::io::fcntl_dupfd_cloexec(any, last));
    }
}

/// The errno of the libc call that just failed on this thread.
pub(crate) fn last_errno() -> super::Errno {
    let raw = std::io::Error::last_os_error().raw_os_error();
    super::Errno::from_raw_os_error(raw.unwrap_or(libc::EIO))
}

/// The absolute path that the kernel knows for a descriptor, without symlinks.
pub(crate) fn real_path(fd: impl AsFd) -> Result<std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = rustix::fs::readlinkat(CWD, proc_path(fd.as_fd()).as_slice(), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(link.into_bytes()).into())
}
