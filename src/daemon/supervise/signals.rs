//! What wakes the process that keeps a mount.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::SigId;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// Signals that came to the keeper.
pub(super) struct Signals {
    /// Something comes with each.
    pipe: UnixStream,
    asked: [(Signal, Arc<AtomicBool>); 3],
    ends: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        let (pipe, writer) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let asked = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        let asked = asked.map(|signal| (signal, Arc::new(AtomicBool::new(false))));
        let ends = Arc::new(AtomicBool::new(false));
        let mut ids = Vec::new();
        for (signal, flag) in &asked {
            ids.push(signal_hook::flag::register(
                *signal as i32,
                Arc::clone(flag),
            )?);
            ids.push(signal_hook::flag::register(
                *signal as i32,
                Arc::clone(&ends),
            )?);
        }
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGHUP] {
            let end = writer.try_clone()?;
            ids.push(signal_hook::low_level::pipe::register(signal, end)?);
        }
        Ok(Self {
            pipe,
            asked,
            ends,
            ids,
        })
    }

    /// Waits for a signal, a message, or the end of the time.
    pub fn wait(&mut self, socket: Option<&OwnedFd>, limit: Option<Duration>) {
        let mut polled = vec![PollFd::new(&self.pipe, PollFlags::IN)];
        polled.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // An interruption is a signal.
        let _ = poll(&mut polled, limit.as_ref());
        let mut bytes = [0; 64];
        while self.pipe.read(&mut bytes).is_ok_and(|n| n > 0) {}
    }

    /// Has those that are passed on wait, for a program that is executed to take them.
    pub fn hold() {
        // It can only fail for what is no signal set.
        let _ = Self::set().thread_block();
    }

    /// Has those that waited come.
    pub fn release() {
        let _ = Self::set().thread_unblock();
    }

    fn set() -> SigSet {
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
            .into_iter()
            .collect()
    }

    /// Those to be passed on.
    pub fn taken(&self) -> impl Iterator<Item = Signal> {
        let asked = self.asked.iter();
        asked
            .filter(|(_, flag)| flag.swap(false, Ordering::AcqRel))
            .map(|(signal, _)| *signal)
    }

    /// True when one came that ends the mount.
    pub fn asked_to_end(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// In a server: they are not for it.
    pub fn leave(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
