//! Files that are cached open for writing, after their last use.
//!
//! They keep the upper's filesystem from being made read-only (mount(8): busy), though nobody has a file
//! open. So each is exchanged for one that is open for reading, after a while: without any the upper's
//! filesystem may forget the file, and with it what went wrong with writing it to its device.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::sys;

use super::Union;

/// The thread that closes such files, and what it waits for.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// There may be some.
    any: AtomicBool,
    ended: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Idle {
    /// Says that a file is cached open for writing.
    pub fn note(&self) {
        if !self.any.load(Ordering::SeqCst) && !self.any.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Union {
    /// True where files that are open for writing can be closed at any time: who may write opens them
    /// again, and their closing has nothing to tell.
    pub(crate) fn may_close_files(&self) -> bool {
        !self.is_read_only() && sys::cred::overrides_modes() && !self.tells_at_close()
    }

    /// Waits until some file is cached open for writing, and for `kept` from then on. Closes all such
    /// files that are not in use at this moment. False at the end; one thread may call it.
    pub(crate) fn close_idle_files(&self, kept: Duration) -> bool {
        let idle = self.descriptors.idle();
        // The first call sets it.
        let _ = idle.thread.set(thread::current());
        while !idle.any.load(Ordering::SeqCst) && !idle.has_ended() {
            thread::park();
        }
        let end = Instant::now() + kept;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if idle.has_ended() {
                return false;
            }
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        // Before the look: what is cached from now on is noted anew.
        idle.any.store(false, Ordering::SeqCst);
        self.descriptors.close_writers();
        true
    }

    /// Says that there are further such files, which somebody else has.
    pub(crate) fn expect_idle_files(&self) {
        self.descriptors.idle().note();
    }

    /// Has [`Self::close_idle_files`] return false.
    pub(crate) fn stop_closing(&self) {
        let idle = self.descriptors.idle();
        idle.ended.store(true, Ordering::SeqCst);
        idle.wake();
    }
}
