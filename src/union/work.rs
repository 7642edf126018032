//! How long a change may take: what the caller's choice of a thread needs to know.

use std::sync::Arc;

use crate::sys::FileKind;

use super::Union;
use super::descriptors::Use;
use super::inode::Inode;

/// Copies of at most so many bytes are short work.
const SHORT: u64 = 256 * 1024;

/// How long something may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// A few system calls that wait for nothing.
    Quick,
    /// A copy of little, or of attributes alone; it may have to wait for a disk.
    Short,
    /// A copy of much, or a wait for one.
    Long,
}

impl Union {
    /// What changing the node's attributes, or with `data` its data, takes. A hint; nothing is
    /// locked.
    pub fn work_to_change(&self, id: u64, data: bool) -> Work {
        if self.layers.upper.is_none() {
            return Work::Quick;
        }
        match self.inodes.get(id) {
            Ok(inode) if !self.in_upper(&inode) => self.work_to_copy(&inode),
            Ok(inode) if inode.kind == FileKind::Regular => self.work_in_upper(&inode, data),
            _ => Work::Quick,
        }
    }

    fn work_to_copy(&self, inode: &Arc<Inode>) -> Work {
        if inode.kind != FileKind::Regular {
            return Work::Short;
        }
        // Another request may be copying it, and must be waited for.
        if inode.copying.is_locked() {
            return Work::Long;
        }
        self.work_by_size(inode)
    }

    fn work_in_upper(&self, inode: &Arc<Inode>, data: bool) -> Work {
        if inode.is_borrowed() || inode.copying.is_locked() {
            return Work::Long;
        }
        // Who has it open for writing has seen that its data are its own.
        let key = (inode.serial, 0, Use::Write);
        if data && self.descriptors.file(key).is_none() {
            return self.work_by_size(inode);
        }
        Work::Quick
    }

    fn work_by_size(&self, inode: &Arc<Inode>) -> Work {
        match self.with_real(inode, |real| real.stat()) {
            Ok(stat) if stat.size <= SHORT => Work::Short,
            _ => Work::Long,
        }
    }
}
