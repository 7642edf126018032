//! Link counts of directories: 2 and one for each subdirectory, merged or not.
//!
//! A directory of one layer has the count of its real directory. For a merged one the counts of its
//! parts say enough where at most the top part has subdirectories; otherwise its entries are read
//! once. The number is kept while the directory is known, and follows every change of ours.

use crate::sys::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::sys::{self, Result};

use super::inode::{DirStack, Inode};
use super::lookup::dir_of;
use super::names::Names;
use super::{ROOT_ID, Union};

/// Not counted yet.
const UNKNOWN: u32 = u32::MAX;

/// How many subdirectories a directory shows; changed with the directory's names written (or, by
/// the first count, read).
#[derive(Debug)]
pub(crate) struct Subdirs(AtomicU32);

impl Subdirs {
    pub fn new(known: Option<u32>) -> Self {
        Self(AtomicU32::new(known.unwrap_or(UNKNOWN)))
    }

    fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Acquire)).filter(|&n| n != UNKNOWN)
    }

    /// Has them counted again.
    pub fn forget(&self) {
        self.0.store(UNKNOWN, Ordering::Release);
    }

    fn set(&self, count: u32) {
        self.0.store(count, Ordering::Release);
    }

    fn change(&self, more: bool) {
        let step = |n: u32| match (n, more) {
            (UNKNOWN, _) => None,
            (n, true) => Some(n + 1),
            (n, false) => Some(n.saturating_sub(1)),
        };
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
    }
}

/// The link counts of a directory's parts, top first.
#[derive(Debug, Default)]
pub(super) struct PartLinks {
    parts: usize,
    top: u64,
    /// A part below the top may have subdirectories.
    below: bool,
}

impl PartLinks {
    pub fn add(&mut self, nlink: u64) {
        if self.parts == 0 {
            self.top = nlink;
        } else {
            self.below |= nlink != 2;
        }
        self.parts += 1;
    }

    /// The subdirectories that a directory with these parts shows, if the counts say that. Some
    /// filesystems give every directory a count of 1.
    pub fn subdirs(&self, stack: &DirStack) -> Option<u32> {
        if self.below || self.top < 2 || self.parts != stack.len() {
            return None;
        }
        u32::try_from(self.top - 2).ok().filter(|&n| n != UNKNOWN)
    }
}

impl Union {
    /// The link count that a directory shows, whose top part has `nlink`.
    pub(super) fn dir_links(&self, inode: &Inode, nlink: u64) -> u64 {
        if self.owners.hides_dir_links() {
            return 1;
        }
        if !self.is_counted(inode) {
            return nlink;
        }
        let known = inode.dir.as_ref().and_then(|dir| dir.subdirs.get());
        // 1 says to find(1) and others that subdirectories are not counted.
        known.map_or(1, |subdirs| 2 + u64::from(subdirs))
    }

    /// True when no real directory has the right count: that of the upper's root has the hidden
    /// directories in it.
    fn is_counted(&self, inode: &Inode) -> bool {
        let is_upper_root = || inode.id == ROOT_ID && self.layers.is_top(inode.layer());
        inode.dir.as_ref().is_some_and(|d| d.stack.read().len() > 1) || is_upper_root()
    }

    fn needs_count(&self, inode: &Inode) -> bool {
        let known = |dir: &super::inode::Dir| dir.subdirs.get().is_some();
        !inode.is_unlinked()
            && !self.owners.hides_dir_links()
            && inode.dir.as_deref().is_some_and(|dir| !known(dir))
            && self.is_counted(inode)
    }

    /// Counts the subdirectories of a directory if that has not been done.
    ///
    /// Precondition: no lock is held.
    pub(super) fn count_subdirs(&self, inode: &Arc<Inode>) {
        if self.needs_count(inode) {
            let _tree = self.tree.read();
            self.count_subdirs_below(inode);
        }
    }

    /// The same with the tree lock held, and perhaps the names of the directory's parent.
    pub(super) fn count_subdirs_below(&self, inode: &Arc<Inode>) {
        if self.needs_count(inode)
            && let Err(e) = self.count_subdirs_now(inode)
        {
            tracing::debug!("the subdirectories of a directory cannot be counted: {e}");
        }
    }

    fn count_subdirs_now(&self, inode: &Arc<Inode>) -> Result<()> {
        let dir = dir_of(inode)?;
        let _names = dir.read_second_names();
        if let Some(count) = dir.with_lasting_names(Names::subdirs) {
            dir.subdirs.set(count);
            return Ok(());
        }
        let stack = inode.stack();
        let mut fds = Vec::with_capacity(stack.len());
        let mut links = PartLinks::default();
        for part in &stack {
            let fd = self.dir_fd(inode, part.layer)?;
            links.add(sys::stat::fstat(&*fd)?.nlink);
            fds.push(fd);
        }
        if let Some(count) = links.subdirs(&stack).filter(|_| inode.id != ROOT_ID) {
            dir.subdirs.set(count);
            return Ok(());
        }
        let changes = dir.changes.load(Ordering::Acquire);
        let names = self.read_names(&stack, &fds)?;
        dir.subdirs.set(names.subdirs());
        self.keep_names(inode, dir, changes, names);
        Ok(())
    }

    /// A directory came into `parent`, or left it.
    ///
    /// Precondition: the parent's names are written.
    pub(super) fn subdir_changed(parent: &Inode, more: bool) {
        if let Some(dir) = &parent.dir {
            dir.subdirs.change(more);
        }
    }

    /// Notes how many subdirectories a lower's directory has, before it becomes a merged one.
    ///
    /// Precondition: the names of its parent are written; it is not in the upper yet.
    pub(super) fn keep_subdirs(&self, inode: &Arc<Inode>) -> Result<()> {
        let dir = dir_of(inode)?;
        let stack = inode.stack();
        if let ([part], None) = (stack.as_slice(), dir.subdirs.get()) {
            let nlink = sys::stat::fstat(&*self.dir_fd(inode, part.layer)?)?.nlink;
            let mut links = PartLinks::default();
            links.add(nlink);
            if let Some(count) = links.subdirs(&stack) {
                dir.subdirs.set(count);
            }
        }
        Ok(())
    }
}
