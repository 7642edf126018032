//! Requests to our own mount: made by a process of their own, and never waited for without limit.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::sys::daemonize::{Task, apart};

/// Does `task` with the mount at `path`; `TimedOut` when it takes longer than `limit`.
pub(super) fn within(limit: Duration, task: Task, path: &Path) -> io::Result<()> {
    let child = apart(task, path)?;
    let (sender, ended) = mpsc::channel();
    thread::Builder::new()
        .name("wait".to_owned())
        .spawn(move || {
            // Nobody listens any more after the time limit.
            let _ = sender.send(waitpid(child, None));
        })?;
    match ended.recv_timeout(limit) {
        Ok(Ok(WaitStatus::Exited(_, 0))) => Ok(()),
        Ok(Ok(WaitStatus::Exited(_, errno))) => Err(io::Error::from_raw_os_error(errno)),
        Ok(Ok(status)) => Err(io::Error::other(format!("{status:?}"))),
        Ok(Err(errno)) => Err(errno.into()),
        Err(_) => {
            // It dies when it gets its answer, or this process ends.
            let _ = kill(child, Signal::SIGKILL);
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// The device number of what stands at `path`, from what the kernel knows without asking.
pub(crate) fn device(path: &Path) -> io::Result<(u32, u32)> {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}
