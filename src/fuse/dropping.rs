//! Threads for what waits until the kernel has written back what it keeps.
//!
//! The kernel does that by requests, which may need the pool of threads for slow work. Waiting there
//! would take the pool's threads from the very requests that are waited for.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

use crate::union::Union;

/// Drops the kernel's pages of files that could not be stored, one file after the other.
#[derive(Debug, Default)]
pub(super) struct Dropping(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    /// The way to the thread, once there is one.
    sender: Option<Sender<u64>>,
    /// Node ids that it has not begun with.
    ids: HashSet<u64>,
}

impl Dropping {
    /// Has the pages of a node dropped soon. What is dirty among them is tried once more, may fail once
    /// more, and come here again.
    pub fn soon(self: &Arc<Self>, union: &Arc<Union>, id: u64) {
        let mut pending = self.0.lock();
        if !pending.ids.insert(id) {
            return;
        }
        let sent = |pending: &Pending| pending.sender.as_ref().is_some_and(|s| s.send(id).is_ok());
        if sent(&pending) {
            return;
        }
        pending.sender = self.start(union);
        if !sent(&pending) {
            // Without a thread they stay: what they show is not stored, as the writer was told.
            pending.ids.remove(&id);
            tracing::error!("what could not be stored stays visible: no thread can be had");
        }
    }

    fn start(self: &Arc<Self>, union: &Arc<Union>) -> Option<Sender<u64>> {
        let (sender, receiver) = channel();
        let (this, union) = (Arc::downgrade(self), Arc::clone(union));
        let thread = std::thread::Builder::new().name("dropping".into());
        let work = move || {
            while let Ok(id) = receiver.recv() {
                let Some(dropping) = this.upgrade() else {
                    return;
                };
                dropping.0.lock().ids.remove(&id);
                drop(dropping);
                union.write_back(id);
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
