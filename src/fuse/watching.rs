//! Has the kernel ask again for what others changed in the layers, from a thread of its own: the kernel may
//! have requests of its own first, and takes its locks of directories.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::union::{Notice, Union};

/// Changes that come within so long are looked at together.
const PAUSE: Duration = Duration::from_millis(2);

/// The thread; dropped, it ends.
#[derive(Debug)]
pub(super) struct Hearing(Arc<Union>);

impl Hearing {
    /// Begins to listen, where that is wanted.
    pub fn start(union: &Arc<Union>, notifier: &Notifier) -> Self {
        if union.hears() {
            let (union, notifier) = (Arc::clone(union), notifier.clone());
            let thread = std::thread::Builder::new().name("watching".into());
            if let Err(e) = thread.spawn(move || listen(&union, &notifier)) {
                tracing::error!("changes in the layers are not heard of: {e}");
            }
        }
        Self(Arc::clone(union))
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.stop_hearing();
    }
}

fn listen(union: &Union, notifier: &Notifier) {
    while let Some(heard) = union.next_heard() {
        if heard.is_nothing() {
            continue;
        }
        if heard.lost {
            tracing::info!("changes were not heard of: everything is looked at again");
        }
        let notices = union.look_again(heard);
        tracing::debug!(count = notices.len(), "changed behind the union's back");
        tell(union, notifier, notices);
        std::thread::sleep(PAUSE);
    }
}

/// Tells the kernel. No lock may be held, and no answer may depend on the thread.
pub(super) fn tell(union: &Union, notifier: &Notifier, notices: Vec<Notice>) {
    for notice in notices {
        // ENOENT: not known to the kernel.
        let _ = match notice {
            Notice::Switch(id) => {
                for id in union.node_ids(id).unwrap_or_default() {
                    let _ = notifier.inval_inode(INodeNo(id), 0, 0);
                }
                if let Some(current) = union.node_ids(id).ok().and_then(|ids| ids.last().copied()) {
                    let _ = union.switch_node(current);
                }
                Ok(())
            }
            Notice::Contents(id) => inval(union, notifier, id, 0),
            // From a negative offset on: the attributes alone, the pages stay.
            Notice::Attributes(id) => inval(union, notifier, id, -1),
            Notice::Name(dir, name) => notifier.inval_entry(INodeNo(dir), OsStr::from_bytes(&name)),
        };
    }
}

fn inval(union: &Union, notifier: &Notifier, id: u64, offset: i64) -> std::io::Result<()> {
    for id in union.node_ids(id).unwrap_or_default() {
        let _ = notifier.inval_inode(INodeNo(id), offset, 0);
    }
    Ok(())
}
