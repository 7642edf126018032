//! References to an inode, counted for this server and noted for the next.
//!
//! (Two fields of the inode, as one of their own would make every inode a word larger.)

use crate::sys::sync::atomic::Ordering;

use super::inode::Inode;
use super::journal;

impl Inode {
    /// How many references there are: the kernel's, and one for each name of which the inode is the
    /// parent.
    pub fn refs(&self) -> u64 {
        self.refs.load(Ordering::Acquire)
    }

    /// Takes some more.
    pub fn add_refs(&self, count: u64) {
        if let Some(journal) = journal::active() {
            journal.refer(self.cell, count);
        }
        self.refs.fetch_add(count, Ordering::AcqRel);
    }

    /// Takes one, unless there is none: then the inode is just being dropped. Returns whether it was
    /// taken.
    pub fn take_ref(&self) -> bool {
        let more = |refs| (refs > 0).then_some(refs + 1);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let taken = self.refs.fetch_update(order.0, order.1, more).is_ok();
        if taken && let Some(journal) = journal::active() {
            journal.refer(self.cell, 1);
        }
        taken
    }

    /// Gives some back. Returns whether none are left.
    pub fn drop_refs(&self, count: u64) -> bool {
        let less = |refs: u64| Some(refs.saturating_sub(count));
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let before = self.refs.fetch_update(order.0, order.1, less);
        let before = before.unwrap_or_else(|refs| refs);
        if let Some(journal) = journal::active() {
            journal.unrefer(self.cell, before.min(count));
        }
        before <= count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_stays_small() {
        let size = size_of::<Inode>();
        assert!(size <= 104, "{size} bytes");
    }
}
