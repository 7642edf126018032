//! Errors of writing a file to its device, for everyone who has it open.
//!
//! fsync(2) reports such an error once to each open file. All of ours go through one descriptor, which is
//! told once. So who asks with an open that was there by then, and was not told, is told from here.

use crate::sys::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::sys::sync::DashMap;
use crate::sys::sync::Slot;
use smallvec::SmallVec;

use crate::sys::{Errno, Result};

use super::Union;
use super::inode::Inode;
use super::journal::{self, Journal};

/// See the module text. A leaf of the lock order.
#[derive(Debug)]
pub(super) struct Told {
    /// Numbers up to this one are those of servers before this one.
    first: u64,
    /// The number of the last open so far.
    opens: AtomicU64,
    /// The last error, by the serial of the inode.
    failed: DashMap<u64, Failed>,
    /// How many, so that ordinary mounts pay nothing.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Failed {
    error: Errno,
    /// The last open by then.
    last: u64,
    /// Opens that know.
    told: SmallVec<[u64; 2]>,
}

impl Told {
    /// Numbers of opens of another server of this mount are below those to be given out.
    pub fn new() -> Self {
        let first = journal::active().map_or(0, Journal::first_open);
        Self {
            first,
            opens: AtomicU64::new(first),
            failed: DashMap::new(),
            count: AtomicUsize::new(0),
        }
    }

    /// Numbers an open.
    pub fn number(&self) -> u64 {
        self.opens.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// What the open `by` has to be told, if `result` is what flushing the inode gave just now. Opens
    /// without a number (0) are told that only.
    pub fn tell(&self, inode: &Inode, by: u64, result: Result<()>) -> Result<()> {
        if let Err(error) = result {
            let failed = Failed {
                error,
                last: self.opens.load(Ordering::Acquire),
                told: SmallVec::from_slice(&[by]),
            };
            if self.failed.insert(inode.serial, failed).is_none() {
                self.count.fetch_add(1, Ordering::AcqRel);
            }
            return result;
        }
        if by == 0 || self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match self.failed.get_mut(&inode.serial) {
            Some(mut failed) if by <= failed.last && !failed.told.contains(&by) => {
                failed.told.push(by);
                Err(failed.error)
            }
            _ => Ok(()),
        }
    }

    fn forget(&self, inode: &Inode) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Slot::Occupied(slot) = self.failed.entry(inode.serial) {
            slot.remove();
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Union {
    /// A number for an open of a file, for [`Self::fsync`].
    pub fn number_of_open(&self) -> u64 {
        self.told.number()
    }

    /// True for the number of an open that this server has seen, and not one before it.
    pub fn is_own_open(&self, number: u64) -> bool {
        number > self.told.first
    }

    /// Forgets what went wrong with an inode that is gone.
    pub(super) fn forget_told(&self, inode: &Inode) {
        self.told.forget(inode);
    }
}
