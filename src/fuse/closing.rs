//! The thread that closes files of the upper which were open for writing, some time after their use.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::desk::Desk;

/// How long such a file may stay open though nobody needs it. A file that is in use all the time is opened
/// again so often.
const KEPT: Duration = Duration::from_secs(2);

/// The thread; dropped, it ends.
#[derive(Debug)]
pub(super) struct Closing {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Closing {
    /// Starts it, where files may be closed.
    pub fn start(desk: &Arc<Desk>) -> Self {
        let mut thread = None;
        if desk.union.may_close_files() {
            let desk = Arc::clone(desk);
            let work = move || {
                while desk.union.close_idle_files(KEPT) {
                    if let Some(table) = &desk.passthrough {
                        table.drop_writers(&desk.union);
                    }
                }
            };
            match std::thread::Builder::new()
                .name("closing".into())
                .spawn(work)
            {
                Ok(started) => thread = Some(started),
                Err(e) => tracing::warn!("files stay open for writing after their use: {e}"),
            }
        }
        Self {
            desk: Arc::clone(desk),
            thread,
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.desk.union.stop_closing();
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told by then.
            let _ = thread.join();
        }
    }
}
