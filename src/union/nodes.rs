//! What is special about how the kernel knows an object: by several node ids, or with attributes
//! that change without a request.
//!
//! A file that the kernel reads from a lower by itself cannot be read from the upper under the same
//! node as long as it is open. After copy-up its names get another node then; the one before stays
//! good for what was opened by it.

use crate::sys::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::sys::sync::DashMap;
use crate::sys::sync::Slot;
use smallvec::SmallVec;

use crate::sys::Result;

use super::Union;
use super::inode::Inode;
use super::stale::What;
use super::types::Keep;

/// See the module text. A leaf of the lock order.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// By the serial of the inode.
    special: DashMap<u64, Special>,
    /// How many, so that ordinary mounts pay nothing.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Special {
    /// Node ids after the inode's own; the last one is given out.
    ids: SmallVec<[u64; 1]>,
    /// Opens through which the file may be mapped and written without a request.
    mappers: u32,
    /// There was one: its mapping may outlive it.
    mapped: bool,
    /// The kernel may clear set-id bits without a request.
    unsettled: bool,
}

impl Nodes {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn change<T>(&self, inode: &Inode, change: impl FnOnce(&mut Special) -> T) -> T {
        let mut special = match self.special.entry(inode.serial) {
            Slot::Occupied(slot) => slot.into_ref(),
            Slot::Vacant(slot) => {
                self.count.fetch_add(1, Ordering::AcqRel);
                slot.insert(Special::default())
            }
        };
        change(&mut special)
    }

    /// The id by which the inode is given out.
    pub fn current(&self, inode: &Inode) -> u64 {
        if self.is_empty() {
            return inode.id;
        }
        let special = self.special.get(&inode.serial);
        special
            .and_then(|s| s.ids.last().copied())
            .unwrap_or(inode.id)
    }

    /// How long attributes of the inode may be kept.
    pub fn keep(&self, inode: &Inode) -> Keep {
        if self.is_empty() {
            return Keep::Long;
        }
        match self.special.get(&inode.serial) {
            None => Keep::Long,
            Some(s) if s.mappers > 0 || s.unsettled || !s.ids.is_empty() => Keep::Not,
            Some(s) if s.mapped => Keep::Short,
            Some(_) => Keep::Long,
        }
    }

    /// Forgets an inode that is gone; returns the ids that it had beside its own.
    pub fn forget(&self, inode: &Inode) -> SmallVec<[u64; 1]> {
        if self.is_empty() {
            return SmallVec::new();
        }
        let Some((_, special)) = self.special.remove(&inode.serial) else {
            return SmallVec::new();
        };
        self.count.fetch_sub(1, Ordering::AcqRel);
        special.ids
    }
}

impl Union {
    /// All node ids of the object that has this one, the present one last.
    ///
    /// # Errors
    /// ESTALE when no one refers to such a node.
    pub fn node_ids(&self, id: u64) -> Result<SmallVec<[u64; 2]>> {
        let inode = self.inodes.get(id)?;
        let mut ids = SmallVec::from_slice(&[inode.id]);
        if let Some(special) = self.nodes.special.get(&inode.serial) {
            ids.extend(special.ids.iter().copied());
        }
        Ok(ids)
    }

    /// Gives the object another node id, which lookups give out from now on, unless it has got one
    /// since `id` was given out. `id` stays good.
    ///
    /// Precondition: no lock is held.
    ///
    /// # Errors
    /// ESTALE when no one refers to such a node.
    pub fn switch_node(&self, id: u64) -> Result<()> {
        let inode = self.inodes.get(id)?;
        let fresh = self.inodes.numbers.fresh();
        self.inodes.add_id(fresh, &inode);
        let is_given = self.nodes.change(&inode, |special| {
            let current = special.ids.last().copied().unwrap_or(inode.id);
            if current == id {
                special.ids.push(fresh);
            }
            current == id
        });
        if !is_given {
            self.inodes.drop_id(fresh);
            return Ok(());
        }
        // Other names lead to the node before for a while, and what it shows changes from now on.
        self.stale.tell(id, What::Attributes);
        tracing::debug!(inode = inode.ino(), from = id, to = fresh, "another node");
        Ok(())
    }

    /// Says that the file was opened in a way that lets it be changed through a mapping without a
    /// request, before the opener knows.
    ///
    /// Precondition: no lock is held.
    ///
    /// # Errors
    /// ESTALE when no one refers to such a node.
    pub fn mapper_opened(&self, id: u64) -> Result<()> {
        let inode = self.inodes.get(id)?;
        let is_first = self.nodes.change(&inode, |special| {
            special.mappers += 1;
            special.mapped = true;
            special.mappers == 1
        });
        if is_first {
            self.stale.tell(id, What::Attributes);
        }
        Ok(())
    }

    /// Says that such an open has ended.
    pub fn mapper_closed(&self, id: u64) {
        if let Ok(inode) = self.inodes.get(id)
            && let Some(mut special) = self.nodes.special.get_mut(&inode.serial)
        {
            special.mappers = special.mappers.saturating_sub(1);
        }
    }

    /// Says that the kernel may clear set-id bits of the file without a request, from before they are
    /// set.
    pub fn set_ids_may_go(&self, id: u64) {
        if let Ok(inode) = self.inodes.get(id)
            && !inode.kind.is_dir()
        {
            self.nodes
                .change(&inode, |special| special.unsettled = true);
        }
    }

    /// Gives up what was special about an inode that is gone.
    pub(super) fn forget_node(&self, inode: &Arc<Inode>) {
        for id in self.nodes.forget(inode) {
            self.inodes.drop_id(id);
        }
    }
}
