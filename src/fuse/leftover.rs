//! Files that the kernel got from servers before this one, for passthrough.
//!
//! Their ids stay in the connection when a server ends, each with the file, its inode and its space on
//! disk. Those of nodes that were open are used again; the others can go, as what is open by one goes on
//! without it. But an answer of the last server may have been read from the connection and not been looked
//! at yet: therefore later.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::BackingId;

use crate::sys::{handover, throwaway};
use crate::union::Union;
use crate::union::journal::Journal;

use super::passthrough::Passthrough;

/// What goes on with some of them.
pub(super) struct Inherited {
    pub union: Arc<Union>,
    pub table: Arc<Passthrough>,
}

/// No client that has its answer needs so long to look at it.
const LATER: Duration = Duration::from_secs(60);

/// Has them closed after a while. To be called before this server's first.
pub(super) fn close_later(
    journal: &'static Journal, connection: &OwnedFd, inherited: Option<Inherited>,
) -> io::Result<()> {
    if let Some(Inherited { table, .. }) = &inherited {
        table.goes_on(connection.try_clone()?);
    }
    // They are numbered as they come.
    let ours = BackingId::create_raw(connection, throwaway::nameless_file()?)?;
    let connection = connection.try_clone()?;
    let thread = std::thread::Builder::new().name("leftover".to_owned());
    thread.spawn(move || {
        let used = || {
            std::thread::sleep(LATER);
            let of = |Inherited { union, table }: &Inherited| table.inherited(union);
            inherited.as_ref().map_or_else(HashSet::new, of)
        };
        // The next server has to look after those that are used now.
        let note = |used: &HashSet<u32>| {
            let last = used.iter().min().map_or(ours, |&id| id.min(ours) - 1);
            journal.note_closed_files(u64::from(last));
        };
        let mut now = used();
        let first = u32::try_from(journal.closed_files()).unwrap_or(u32::MAX);
        let unused = (first..=ours).filter(|id| !now.contains(id));
        let closed = unused.filter(|&id| handover::close_file(&connection, id).is_ok());
        let closed = closed.count();
        tracing::debug!("closed {closed} files of servers before this one");
        note(&now);
        while !now.is_empty() {
            now = used();
            note(&now);
        }
    })?;
    Ok(())
}
