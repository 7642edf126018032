//! Taking a mount away, and never waiting for it without a limit.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::mount::Identity;
use crate::sys::{self, Errno, fusermount};

use super::Error;

/// How long a call may hang in the mount.
const CALL: Duration = Duration::from_secs(10);
/// How long whoever used the mount may take to let go of it.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// A mount of ours, by what tells it from another one at the same place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat<'a> {
    pub path: &'a Path,
    pub identity: Identity,
}

/// Runs `work` in a thread of its own; `None` when it takes longer than `limit`, or there can be no
/// thread.
pub(super) fn within<T: Send + 'static>(
    limit: Duration, work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, done) = mpsc::channel();
    let thread = thread::Builder::new().name("unionfs-call".to_owned());
    // Nobody listens any more after the limit.
    thread.spawn(move || sender.send(work())).ok()?;
    done.recv_timeout(limit).ok()
}

/// What stands at `path`.
pub(super) fn identity(path: &Path) -> Result<Identity, Error> {
    sys::mount::identity(path).map_err(|e| {
        let error = std::io::Error::from(e);
        Error::new(format_args!("{}: {error}", path.display()))
    })
}

/// Waits until a new mount answers.
pub(super) fn answers(path: &Path) -> Result<(), Error> {
    let asked = path.to_owned();
    let answer = within(CALL, move || {
        let dir = sys::at::open_root(asked.as_os_str().as_encoded_bytes())?;
        sys::stat::statvfs(dir).map(drop)
    });
    match answer {
        Some(Ok(())) => Ok(()),
        Some(Err(e)) => Err(Error::new(format_args!(
            "the mount on {} does not answer: {}",
            path.display(),
            std::io::Error::from(e)
        ))),
        None => Err(Error::new(format_args!(
            "the mount on {} does not answer within {} s",
            path.display(),
            CALL.as_secs()
        ))),
    }
}

/// Why a mount is still there.
enum Refusal {
    Busy,
    Other(String),
}

impl Seat<'_> {
    /// False when it is gone, whatever stands there now.
    pub fn is_mounted(self) -> bool {
        sys::mount::identity(self.path).is_ok_and(|now| now == self.identity)
    }

    /// Has the kernel write what it keeps of changed files.
    pub fn sync(self) -> Result<(), Error> {
        let path = self.path.to_owned();
        let number = self.identity.device;
        let synced = within(CALL, move || {
            let dir = File::open(path)?;
            sys::file::sync_filesystem(dir)?;
            // It is on its way then, which is not waited for (Linux 6.18).
            let start = Instant::now();
            while sys::connection::waiting(number) > Some(0) && start.elapsed() < PATIENCE {
                thread::sleep(PAUSE);
            }
            std::io::Result::Ok(())
        });
        let fail = |reason: &dyn std::fmt::Display| {
            Error::new(format_args!("sync of {}: {reason}", self.path.display()))
        };
        match synced {
            Some(synced) => synced.map_err(|e| fail(&e)),
            None => Err(fail(&"it takes too long")),
        }
    }

    /// Unmounts as soon as nobody uses it.
    ///
    /// # Errors
    /// A busy one when somebody does for longer.
    pub fn unmount(self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            if !self.is_mounted() {
                return Ok(());
            }
            let name = self.path.display();
            match self.try_unmount(false) {
                Ok(()) => return Ok(()),
                // A process that was just forked holds all that its parent has open until it executes
                // its program; so does the kernel for a moment after close(2).
                Err(Refusal::Busy) if start.elapsed() < PATIENCE => thread::sleep(PAUSE),
                Err(Refusal::Busy) => {
                    return Err(Error::busy(format_args!("unmounting {name}: it is in use")));
                }
                Err(Refusal::Other(reason)) => {
                    return Err(Error::new(format_args!("unmounting {name}: {reason}")));
                }
            }
        }
    }

    /// Takes the mount away from its place; who uses it goes on.
    pub fn detach(self) -> Result<(), Error> {
        if !self.is_mounted() {
            return Ok(());
        }
        self.try_unmount(true).map_err(|refusal| {
            let reason = match refusal {
                Refusal::Busy => "it is in use".to_owned(),
                Refusal::Other(reason) => reason,
            };
            Error::new(format_args!("unmounting {}: {reason}", self.path.display()))
        })
    }

    fn try_unmount(self, lazy: bool) -> Result<(), Refusal> {
        let path = self.path.to_owned();
        let call = move || match sys::mount::unmount(path.as_os_str().as_encoded_bytes(), lazy) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(Refusal::Busy),
            Err(Errno::PERM) => fusermount::unmount(&path, lazy).map_err(|reason| {
                match reason.contains("resource busy") {
                    true => Refusal::Busy,
                    false => Refusal::Other(reason),
                }
            }),
            Err(e) => Err(Refusal::Other(std::io::Error::from(e).to_string())),
        };
        within(CALL, call)
            .unwrap_or_else(|| Err(Refusal::Other("it does not end in time".to_owned())))
    }

    /// Ends the connection: whoever still uses the mount gets an error.
    pub fn abort(self) {
        // Where it may not be done, or fusectl is not mounted, they go on.
        if let Err(e) = sys::connection::abort(self.identity.device) {
            tracing::debug!("connection {} is not ended: {e}", self.identity.device);
        }
    }
}
