//! What is special about how the kernel knows an object: by several node ids, or with attributes
//! that change without a request.
//!
//! A file that the kernel reads from a lower by itself cannot be read from the upper under the same
//! node as long as it is open. After copy-up its names get another node then; the one before stays
//! good for what was opened by it.

use crate::sys::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::sys::sync::Slot;
use crate::sys::sync::{DashMap, Mutex};
use smallvec::SmallVec;

use crate::sys::Result;

use super::Union;
use super::inode::Inode;
use super::journal::{self, Cell, Further, OpenFile};
use super::stale::What;
use super::types::Keep;

/// See the module text. A leaf of the lock order.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// By the serial of the inode.
    special: DashMap<u64, Special>,
    /// How many, so that ordinary mounts pay nothing.
    count: AtomicUsize,
    /// Nodes that were open when the last server of the mount ended.
    open_before: Mutex<Vec<(u64, OpenFile)>>,
}

#[derive(Debug, Default)]
struct Special {
    /// Node ids after the inode's own, and where they are noted; the last one is given out.
    ids: SmallVec<[(u64, Cell); 1]>,
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
            .and_then(|s| s.ids.last().map(|(id, _)| *id))
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
    pub fn forget(&self, inode: &Inode) -> SmallVec<[(u64, Cell); 1]> {
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
            ids.extend(special.ids.iter().map(|(id, _)| *id));
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
        let cell = journal::active().map_or_else(Cell::default, |journal| {
            journal.add_further(fresh, inode.serial)
        });
        let is_given = self.nodes.change(&inode, |special| {
            let current = special.ids.last().map_or(inode.id, |(id, _)| *id);
            if current == id {
                special.ids.push((fresh, cell));
            }
            current == id
        });
        if !is_given {
            self.drop_node((fresh, cell));
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
        for node in self.nodes.forget(inode) {
            self.drop_node(node);
        }
    }

    fn drop_node(&self, (id, cell): (u64, Cell)) {
        self.inodes.drop_id(id);
        if let Some(journal) = journal::active() {
            journal.remove_further(cell);
        }
    }

    /// Takes in a further node that the last server gave out.
    pub(super) fn restore_node(&self, inode: &Arc<Inode>, further: &Further) {
        self.inodes.add_id(further.id, inode);
        self.nodes.change(inode, |special| {
            special.ids.push((further.id, further.cell));
        });
    }

    /// Has the next server of the mount know by what the kernel may have a node open.
    pub fn note_open(&self, id: u64, open: Option<OpenFile>) {
        let Some(journal) = journal::active() else {
            return;
        };
        let Ok(inode) = self.inodes.get(id) else {
            return;
        };
        if inode.id == id {
            return journal.set_open(inode.cell, open);
        }
        if let Some(special) = self.nodes.special.get(&inode.serial)
            && let Some((_, cell)) = special.ids.iter().find(|(further, _)| *further == id)
        {
            journal.set_open(*cell, open);
        }
    }

    /// Nodes that the kernel may have open since the last server, and by what; once.
    pub fn take_open_nodes(&self) -> Vec<(u64, OpenFile)> {
        std::mem::take(&mut self.nodes.open_before.lock())
    }

    /// Says that there is one.
    pub(super) fn was_open(&self, id: u64, by: OpenFile) {
        self.nodes.open_before.lock().push((id, by));
    }
}
