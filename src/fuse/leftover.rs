//! Files that the kernel got from servers before this one, for passthrough.
//!
//! Their ids stay in the connection when a server ends, each with the file, its inode and its space on
//! disk. What is open by one goes on without it, and this server uses none of them, so they can go. But
//! an answer of the last server may have been read from the connection and not been looked at yet:
//! therefore later.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuser::BackingId;

use crate::sys::{handover, throwaway};
use crate::union::journal::Journal;

/// No client that has its answer needs so long to look at it.
const LATER: Duration = Duration::from_secs(60);

/// Has them closed after a while. To be called before this server's first.
pub(super) fn close_later(journal: &'static Journal, connection: &OwnedFd) -> io::Result<()> {
    // They are numbered as they come.
    let ours = BackingId::create_raw(connection, throwaway::nameless_file()?)?;
    let connection = connection.try_clone()?;
    let thread = std::thread::Builder::new().name("leftover".to_owned());
    thread.spawn(move || {
        std::thread::sleep(LATER);
        let first = u32::try_from(journal.closed_files()).unwrap_or(u32::MAX);
        let closed = (first..=ours).filter(|&id| handover::close_file(&connection, id).is_ok());
        let closed = closed.count();
        journal.note_closed_files(u64::from(ours));
        tracing::debug!("closed {closed} files of servers before this one");
    })?;
    Ok(())
}
