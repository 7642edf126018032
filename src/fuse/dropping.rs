//! Threads for what waits until the kernel has written back what it keeps, and for what could not be stored.
//!
//! The kernel writes back by requests, which may need the pool of threads for slow work. Waiting there
//! would take the pool's threads from the very requests that are waited for.
//!
//! Where the kernel keeps what is written, it goes by its own size of a file, and takes no other from us as
//! long as it knows the node. So a file whose end could not be stored must be forgotten by it. It is when
//! no name leads there and nobody has it open; so its names are taken away, again and again until then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::union::Attr;

use super::desk::Desk;
use super::watching::tell;

/// After so long it is looked again whether files that show too much are known still; up to the second.
const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_secs(1);

/// Drops the kernel's pages of files that could not be stored, one file after the other, and has it forget
/// a size that is not theirs.
#[derive(Debug, Default)]
pub(super) struct Dropping {
    pending: Mutex<Pending>,
    /// How many files may show too much, so that ordinary mounts pay nothing.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pending {
    /// The way to the thread, once there is one.
    sender: Option<Sender<u64>>,
    /// Node ids that it has not begun with.
    ids: HashSet<u64>,
    /// Up to where the kernel takes a file for stored, by node id, if it goes by its own size.
    ends: HashMap<u64, u64>,
}

impl Dropping {
    /// Has the pages of a node dropped soon, of which those up to `end` could not be stored. What is dirty
    /// among them is tried once more, may fail once more, and come here again.
    ///
    /// To be called before the kernel is answered: a truncation that comes later sets the size right.
    pub fn soon(self: &Arc<Self>, desk: &Arc<Desk>, id: u64, end: u64) {
        let mut pending = self.pending.lock();
        if desk.choice.way.keeps_writes() {
            let known = pending.ends.entry(id).or_default();
            *known = end.max(*known);
            self.count.store(pending.ends.len(), Ordering::Release);
        }
        if !pending.ids.insert(id) {
            return;
        }
        let sent = |pending: &Pending| pending.sender.as_ref().is_some_and(|s| s.send(id).is_ok());
        if sent(&pending) {
            return;
        }
        pending.sender = self.start(desk);
        if !sent(&pending) {
            // Without a thread they stay: what they show is not stored, as the writer was told.
            pending.ids.remove(&id);
            tracing::error!("what could not be stored stays visible: no thread can be had");
        }
    }

    /// Says that the kernel has the size of a node from us now, or has forgotten the node.
    pub fn is_right(&self, id: u64) {
        let mut pending = self.pending.lock();
        pending.ends.remove(&id);
        self.count.store(pending.ends.len(), Ordering::Release);
    }

    /// True when there may be files that show too much.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Takes the names of files that show too much away from the kernel.
    fn have_forgotten(&self, desk: &Desk) {
        if !self.any() {
            return;
        }
        let ends: Vec<_> = {
            let pending = self.pending.lock();
            pending.ends.iter().map(|(id, end)| (*id, *end)).collect()
        };
        for (id, end) in ends {
            // A write behind what was lost may have come through.
            let is_short = |attr: Attr| attr.stat.size < end;
            if !desk.union.getattr(id).is_ok_and(is_short) {
                self.is_right(id);
            } else if let Some(notifier) = desk.notifier.get() {
                tell(&desk.union, notifier, desk.union.shown_names(id));
            }
        }
    }

    fn start(self: &Arc<Self>, desk: &Arc<Desk>) -> Option<Sender<u64>> {
        let (sender, receiver) = channel();
        let (this, desk) = (Arc::downgrade(self), Arc::clone(desk));
        let thread = std::thread::Builder::new().name("dropping".into());
        let work = move || {
            let mut pause = None;
            loop {
                let next = match pause {
                    None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(pause) => receiver.recv_timeout(pause),
                };
                // Not kept while waiting: the end of the mount ends that.
                let Some(this) = this.upgrade() else { return };
                let longer = match next {
                    Ok(id) => {
                        this.pending.lock().ids.remove(&id);
                        desk.union.write_back(id);
                        FIRST
                    }
                    Err(RecvTimeoutError::Timeout) => pause.map_or(LAST, |p| (p * 2).min(LAST)),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                this.have_forgotten(&desk);
                pause = this.any().then_some(longer);
            }
        };
        thread.spawn(work).ok()?;
        Some(sender)
    }
}

/// Runs work that waits for the kernel's write-back on a thread of its own, or by `otherwise` if there
/// can be none.
pub(super) fn apart<W: FnOnce() + Send + 'static>(work: W, otherwise: impl FnOnce(W)) {
    let kept = Arc::new(Mutex::new(Some(work)));
    let given = Arc::clone(&kept);
    let thread = std::thread::Builder::new().name("write-back".into());
    let run = move || {
        let work = given.lock().take();
        if let Some(work) = work {
            work();
        }
    };
    if thread.spawn(run).is_err()
        && let Some(work) = kept.lock().take()
    {
        otherwise(work);
    }
}
