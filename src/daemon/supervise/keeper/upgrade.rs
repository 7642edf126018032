//! The steps from one program to another.
//!
//! The server of the old one is killed, and the next is the new one's. When that serves, the keeper
//! becomes the new program too; when it does not, the next server is the old program's again.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Keeper;
use crate::daemon::supervise::signals::Signals;
use crate::daemon::upgrade::{Kept, REFUSED};
use crate::mount::journal;
use crate::sys::{Errno, handover};

/// How long a server of another program may take until it serves.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How far it is with an upgrade.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Upgrade {
    /// There is none.
    No,
    /// The server is to end for this program.
    Asked(PathBuf),
    /// This program's server was started then.
    Tried(PathBuf, Instant),
}

impl Keeper {
    /// Has this process become another program, of which it has the part that `line` says. Returns
    /// only if that cannot be.
    fn execute(&self, line: (&str, u64), way: &OwnedFd) -> Errno {
        let Upgrade::Tried(path, _) = &self.upgrade else {
            return Errno::INVAL;
        };
        let pass_on = || -> io::Result<Kept> {
            let mut kept = Kept::default();
            kept.add(line.0, (line.1, 0), way)?;
            kept.add("memory", (0, 0), &self.memory)?;
            if let Some(fd) = &self.connection {
                kept.add("connection", (0, 0), fd)?;
            }
            for (serial, (cell, fd)) in &self.held {
                kept.add("held", (*cell, *serial), fd)?;
            }
            self.layers.pass_on(&mut kept)?;
            kept.add_name("name", self.name.as_os_str())?;
            kept.add_name("base", self.base.as_os_str())?;
            kept.add_name(
                "adopted",
                OsStr::new(if self.adopted { "yes" } else { "no" }),
            )?;
            Ok(kept)
        };
        let error = match pass_on() {
            Ok(kept) => kept.execute(path),
            Err(error) => error,
        };
        // What servers execute later is not to have them.
        let fds = [way, &self.memory].into_iter().chain(&self.connection);
        let held = self.held.values().map(|(_, fd)| fd);
        for fd in fds.chain(held).chain(self.layers.all()) {
            let _ = handover::keep_back(fd);
        }
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    }

    /// True when the next server is to be the one of another program.
    pub(in crate::daemon::supervise) fn is_upgrading(&self) -> bool {
        matches!(self.upgrade, Upgrade::Tried(..))
    }

    /// A server was asked for an upgrade. The path is taken now: whoever asks later may change it.
    pub(super) fn ask_upgrade(&mut self) {
        let path = PathBuf::from(OsString::from_vec(journal::program(self.words)));
        self.upgrade = Upgrade::Asked(path);
    }

    /// In a process that was forked to be a server: becomes the other program's. Returns only if
    /// that cannot be.
    pub(in crate::daemon::supervise) fn execute_server(&self, way: &OwnedFd) -> io::Error {
        let errno = self.execute(("keeper", 0), way);
        journal::end_upgrade(self.words, Err(errno));
        errno.into()
    }

    /// The other program's server serves: this process becomes that program too. Returns only if that
    /// cannot be; then all is to be as it was.
    fn follow(&mut self, pid: Pid, way: &OwnedFd) {
        Signals::hold();
        self.pass_signals_on(pid);
        let server = u64::try_from(pid.as_raw()).unwrap_or(0);
        let errno = self.execute(("server", server), way);
        Signals::release();
        journal::end_upgrade(self.words, Err(errno));
    }

    /// Brings an upgrade a step on, while `pid` is the server.
    pub(super) fn upgrade_on(&mut self, pid: Pid, way: &OwnedFd) {
        match self.upgrade {
            Upgrade::No => {}
            Upgrade::Asked(_) => drop(kill(pid, Signal::SIGKILL)),
            Upgrade::Tried(_, since) => {
                if self.ready.is_some() {
                    self.follow(pid, way);
                }
                // Either this cannot be the other program, or that takes too long.
                if self.ready.is_some() || since.elapsed() > PATIENCE {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }

    /// The server has ended: the next one is the other program's, or was.
    pub(super) fn next_upgrade(&mut self) {
        self.upgrade = match std::mem::replace(&mut self.upgrade, Upgrade::No) {
            Upgrade::Asked(path) if self.connection.is_some() => {
                journal::begin_upgrade(self.words);
                Upgrade::Tried(path, Instant::now())
            }
            Upgrade::Tried(..) => {
                journal::end_upgrade(self.words, Err(REFUSED));
                Upgrade::No
            }
            _ => Upgrade::No,
        };
    }
}
