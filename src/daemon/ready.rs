//! The background start: the caller waits on a pipe until the daemon says that the mount answers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, Pid};

use super::Failure;

/// The caller's end.
pub(super) struct Reader(File);

/// The daemon's end. It is closed when the process ends, which is how failure is seen.
pub(super) struct Writer(File);

/// Makes the pipe. Programs started by the daemon do not inherit it.
pub(super) fn pipe() -> Result<(Reader, Writer), Failure> {
    let (reader, writer) = unistd::pipe2(OFlag::O_CLOEXEC)
        .map_err(|error| Failure::new(format_args!("cannot make a pipe: {error}")))?;
    Ok((Reader(File::from(reader)), Writer(File::from(writer))))
}

impl Reader {
    /// Waits until the daemon is ready, or has ended, which it explains itself.
    ///
    /// The caller ends here in the second case too, without an own line on stderr unless the
    /// daemon could not write one.
    pub(super) fn wait(mut self, daemon: Pid) -> Result<(), Failure> {
        let mut byte = [0];
        if let Ok(()) = self.0.read_exact(&mut byte) {
            return Ok(());
        }
        // Only when it is gone can the caller rely on nothing being left.
        match waitpid(daemon, None) {
            Ok(WaitStatus::Signaled(_, signal, _)) => Err(Failure::new(format_args!(
                "the daemon was killed by {signal} before the mount answered"
            ))),
            _ => Err(Failure::Told),
        }
    }
}

impl Writer {
    /// The pipe itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Makes this process independent of the caller's terminal and directory.
    pub(super) fn into_daemon(self) -> Result<Notice, Failure> {
        let cannot = |what, error: io::Error| Failure::new(format_args!("cannot {what}: {error}"));
        unistd::setsid().map_err(|error| cannot("start a session", error.into()))?;
        unistd::chdir("/").map_err(|error| cannot("change to /", error.into()))?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| cannot("open /dev/null", error))?;
        Ok(Notice {
            writer: self,
            null: null.into(),
        })
    }
}

/// What tells the caller that the mount answers.
pub(super) struct Notice {
    writer: Writer,
    /// Opened before anything is mounted, perhaps over /dev.
    null: OwnedFd,
}

impl Notice {
    /// Lets go of the caller's stdio, then lets the caller go.
    ///
    /// In this order, because the caller's caller may wait for the end of its stderr pipe.
    pub(super) fn give(mut self) -> io::Result<()> {
        self.leave_stdio()?;
        self.writer.0.write_all(&[1])
    }

    /// Lets go of the caller's stdio, and leaves it to another process to let the caller go.
    pub(super) fn leave(self) -> io::Result<()> {
        self.leave_stdio()
    }

    fn leave_stdio(&self) -> io::Result<()> {
        unistd::dup2_stdin(&self.null)?;
        unistd::dup2_stdout(&self.null)?;
        unistd::dup2_stderr(&self.null).map_err(io::Error::from)
    }
}
