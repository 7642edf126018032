//! All inodes that someone refers to, by node id, and how a lookup finds them again.

use crate::sys::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::sys::sync::DashMap;
use crate::sys::sync::Slot;

use crate::sys::{Errno, FileKind, Result, Stat};

pub(crate) use super::found::Found;
use super::inode::{Alias, Inode, NewInode};
use super::inode_map::InodeMap;
use super::journal::{self, Cell, Journal};
use super::numbers::Numbers;

/// Node id of the root, fixed by FUSE.
pub(crate) const ROOT_ID: u64 = 1;

/// Fewer forgotten inodes than this are not worth giving memory back for.
const TRIM_LEAST: u64 = 4_096;

/// See the module text. Its maps are leaves of the lock order: no other lock is taken and no call
/// is made under one, and an `Arc` is cloned instead of keeping a guard.
#[derive(Debug)]
pub(crate) struct InodeTable {
    by_id: InodeMap,
    /// Inodes by node ids that are not their own.
    further: DashMap<u64, Arc<Inode>>,
    /// Node ids of inodes whose key is not their id.
    by_key: DashMap<u64, u64>,
    /// Node ids of inodes that are found by parent (its serial) and name.
    by_name: DashMap<(u64, Box<[u8]>), u64>,
    next_serial: AtomicU64,
    forgotten: AtomicU64,
    /// References that will be given back though no one took them, by node id.
    owed: DashMap<u64, u64>,
    /// How many.
    owed_sum: AtomicU64,
    pub numbers: Numbers,
    /// A lower file with several names is one inode; else one for each name.
    linked: bool,
}

impl InodeTable {
    /// A table that holds the root.
    pub fn new(numbers: Numbers, root: NewInode, linked: bool) -> Self {
        let serials = journal::active().map_or(0, Journal::next_serial);
        let table = Self {
            by_id: InodeMap::new(),
            further: DashMap::with_shard_amount(4),
            by_key: DashMap::new(),
            by_name: DashMap::with_shard_amount(16),
            next_serial: AtomicU64::new(serials.max(2)),
            forgotten: AtomicU64::new(0),
            owed: DashMap::with_shard_amount(2),
            owed_sum: AtomicU64::new(0),
            numbers,
            linked,
        };
        let root = || (Arc::new(Inode::new(root)), ());
        table.by_id.with(ROOT_ID, |_| (), root);
        table
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// ESTALE when no one refers to such a node.
    pub fn get(&self, id: u64) -> Result<Arc<Inode>> {
        self.any(id).ok_or(Errno::STALE)
    }

    fn any(&self, id: u64) -> Option<Arc<Inode>> {
        let further = || self.further.get(&id).map(|inode| Arc::clone(&inode));
        self.by_id.get(id).or_else(further)
    }

    /// Has a further node id lead to an inode.
    pub fn add_id(&self, id: u64, inode: &Arc<Inode>) {
        self.further.insert(id, Arc::clone(inode));
    }

    /// Takes a further node id away again.
    pub fn drop_id(&self, id: u64) {
        self.further.remove(&id);
    }

    /// All inodes, without new references.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.by_id.all()
    }

    /// Number of inodes, the root included.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The inode that stands for the real object with number `key`, without a new reference.
    pub fn find(&self, key: u64) -> Option<Arc<Inode>> {
        let id = self.by_key.get(&key).map_or(key, |id| *id);
        let inode = self.by_id.get(id)?;
        (inode.key.load(Ordering::Acquire) == key).then_some(inode)
    }

    /// The inode of the directory `name` in `parent`, whose top part has attributes `stat`, if it is
    /// known and all of it is where names lead.
    pub fn find_dir(&self, parent: &Arc<Inode>, name: &[u8], stat: &Stat) -> Option<Arc<Inode>> {
        let inode = self.find(self.numbers.of(stat.dev, stat.ino))?;
        let is_plain = inode.kind.is_dir() && !inode.is_unlinked();
        let is_known = is_plain && Self::is_known_as(&inode, parent, name);
        let leads = inode.place.read().lower().is_none();
        (is_known && leads).then_some(inode)
    }

    /// The inode known as `name` in `parent` for a lower object that is found by name.
    fn find_named(&self, parent: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        let id = self
            .by_name
            .get(&(parent.serial, name.into()))
            .map(|id| *id)?;
        self.by_id.get(id)
    }

    /// The inode that `found` under `name` in `parent` has already, with a new reference.
    pub fn find_known(&self, parent: &Inode, name: &[u8], found: &Found) -> Option<Arc<Inode>> {
        let named = || self.find_named(parent, name);
        let inode = if self.is_named(found) {
            named()
        } else {
            let key = self.numbers.of(found.stat.dev, found.stat.ino);
            let by_origin = || found.plink.and_then(|number| self.find(number));
            self.find(key).or_else(by_origin).or_else(named)
        }?;
        // Without a reference of anyone's it is just being dropped.
        inode.take_ref().then_some(inode)
    }

    /// True for a lower file with several links whose names part at copy-up: it is one inode for
    /// each name.
    pub fn is_named(&self, found: &Found) -> bool {
        let parts = !self.linked && found.layer > 0;
        parts && !found.stat.kind().is_dir() && found.stat.nlink > 1
    }

    /// The inode for `found` as `name` in `parent`, with one more reference; made if need be.
    ///
    /// Precondition: the parent's names are locked, so that the name keeps this meaning.
    pub fn intern(&self, parent: &Arc<Inode>, name: &[u8], mut found: Found) -> Arc<Inode> {
        let number = self.numbers.of(found.stat.dev, found.stat.ino);
        let kind = found.stat.kind();
        if self.is_named(&found) {
            return self.intern_named(parent, name, found, number);
        }
        let ino = found.ino.unwrap_or(number);
        loop {
            let id = self.id_of(number).or_else(|| self.id_of(found.plink?));
            let id = id.unwrap_or(ino);
            let plink = found.plink;
            let is_it = |inode: &Arc<Inode>| {
                let key = inode.key.load(Ordering::Acquire);
                // A lower's file that is just becoming its copy is found by its former key.
                let is_it = (key == number || Some(key) == plink) && inode.kind == kind;
                Met::known(inode, is_it)
            };
            let ids = Ids {
                id,
                key: number,
                ino,
                by_name: false,
            };
            let make = || self.make(parent, name, &mut found, &ids);
            match self.by_id.with(id, is_it, make) {
                Met::Made(inode) => {
                    if id != number {
                        // A forget of the inode that had this id may just have dropped it.
                        self.by_key.insert(number, id);
                    }
                    return inode;
                }
                Met::Known(inode) => {
                    if Self::name_fits(&inode, parent, name) {
                        return inode;
                    }
                    // The same directory at two places, as a bind mount below a layer makes it: each
                    // place is an inode of its own.
                    self.forget(inode.id, 1);
                    return self.intern_named(parent, name, found, number);
                }
                Met::Other => {
                    // The node id is in use for another object, whose number came back on disk
                    // before the kernel forgot it.
                    let fresh = self.numbers.fresh();
                    self.by_key.insert(number, fresh);
                }
            }
        }
    }

    /// The node id of the object with this number, where it is not the number.
    fn id_of(&self, number: u64) -> Option<u64> {
        self.by_key.get(&number).map(|id| *id)
    }

    /// True when the inode may be known as `name` in `parent`; remembers the name of a file.
    fn name_fits(inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8]) -> bool {
        if inode.kind != FileKind::Directory {
            inode.add_alias(parent, name);
            return true;
        }
        Self::is_known_as(inode, parent, name)
    }

    /// True when the inode's first name is this one, or it has none.
    fn is_known_as(inode: &Inode, parent: &Arc<Inode>, name: &[u8]) -> bool {
        let place = inode.place.read();
        let is_it = |a: &Alias| Arc::ptr_eq(&a.parent, parent) && *a.name == *name;
        place.alias.as_ref().is_none_or(is_it)
    }

    fn intern_named(
        &self, parent: &Arc<Inode>, name: &[u8], mut found: Found, number: u64,
    ) -> Arc<Inode> {
        let slot = self.by_name.entry((parent.serial, name.into()));
        let id = match slot {
            Slot::Occupied(known) => *known.get(),
            Slot::Vacant(slot) => {
                let taken = self.by_id.contains(number);
                let id = if taken { self.numbers.fresh() } else { number };
                *slot.insert(id).value()
            }
        };
        let ids = Ids {
            id,
            key: 0,
            ino: number,
            by_name: true,
        };
        let known = |inode: &Arc<Inode>| Met::known(inode, inode.by_name);
        let make = || self.make(parent, name, &mut found, &ids);
        match self.by_id.with(id, known, make) {
            Met::Made(inode) => {
                // A forget of the inode that had this id may just have dropped it.
                self.by_name.insert((parent.serial, name.into()), id);
                return inode;
            }
            Met::Known(inode) if Self::is_known_as(&inode, parent, name) => return inode,
            Met::Known(inode) => {
                self.forget(inode.id, 1);
            }
            Met::Other => {}
        }
        // The id is another object's: lost a race for the number as node id.
        let id = self.numbers.fresh();
        self.by_name.insert((parent.serial, name.into()), id);
        self.intern_named(parent, name, found, number)
    }

    /// Makes an inode; takes the rest out of what was found.
    fn make(
        &self, parent: &Arc<Inode>, name: &[u8], found: &mut Found, ids: &Ids,
    ) -> (Arc<Inode>, Met) {
        parent.add_refs(1);
        let mut new = NewInode {
            id: ids.id,
            serial: self.next_serial.fetch_add(1, Ordering::Relaxed),
            ino: ids.ino,
            key: ids.key,
            layer: found.object_layer(),
            kind: found.stat.kind(),
            by_name: ids.by_name,
            plinked: found.plink.is_some(),
            alias: Some(Alias {
                parent: Arc::clone(parent),
                name: name.into(),
            }),
            stack: found.stack.take(),
            lower: found.lower.take(),
            subdirs: found.subdirs,
            noted: (Cell::default(), 1),
        };
        if let Some(journal) = journal::active() {
            new.noted.0 = journal.add(&new);
        }
        let inode = Arc::new(Inode::new(new));
        (Arc::clone(&inode), Met::Made(inode))
    }

    /// Takes in an inode that the last server had; ids and serials go on above its own.
    pub fn put(&self, inode: Inode) -> Arc<Inode> {
        self.skip(inode.id, inode.serial);
        let inode = Arc::new(inode);
        let key = inode.key.load(Ordering::Acquire);
        if key != 0 && key != inode.id {
            self.by_key.insert(key, inode.id);
        }
        if inode.by_name
            && key == 0
            && let Some(alias) = inode.alias()
        {
            self.by_name
                .insert((alias.parent.serial, alias.name), inode.id);
        }
        let known = |known: &Arc<Inode>| Arc::clone(known);
        let put = || (Arc::clone(&inode), Arc::clone(&inode));
        self.by_id.with(inode.id, known, put)
    }

    /// Has ids and serials go on above these.
    pub fn skip(&self, id: u64, serial: u64) {
        self.next_serial.fetch_max(serial + 1, Ordering::Relaxed);
        self.numbers.skip(id);
    }

    /// Says that the inode's real object is now the upper's one with number `key`.
    ///
    /// Precondition: the parent's names are locked, so that no lookup meets the new object before.
    pub fn rekey(&self, inode: &Inode, key: u64, ino_follows: bool) {
        let old = inode.key.load(Ordering::Acquire);
        if key == inode.id {
            // Another object may have led there while this one had another key.
            self.by_key.remove(&key);
        } else {
            self.by_key.insert(key, inode.id);
        }
        inode.key.store(key, Ordering::Release);
        if old != 0 && old != inode.id {
            self.by_key.remove_if(&old, |_, id| *id == inode.id);
        }
        if ino_follows {
            inode.set_ino(key);
        }
        self.drop_named(inode, |_| true);
    }

    /// Makes the inode unfindable: its last name is gone, and its number may be used again.
    pub fn retire(&self, inode: &Inode) {
        let key = inode.key.swap(0, Ordering::AcqRel);
        if key != 0 && key != inode.id {
            self.by_key.remove_if(&key, |_, id| *id == inode.id);
        }
        self.drop_named(inode, |_| true);
    }

    /// Drops what led to an inode that is gone, unless a lookup has already made another one that
    /// took over its id.
    fn drop_traces(&self, inode: &Inode) {
        let key = inode.key.load(Ordering::Acquire);
        let unused = |id: &u64| !self.by_id.contains(*id);
        if key != 0 && key != inode.id {
            self.by_key
                .remove_if(&key, |_, id| *id == inode.id && unused(id));
        }
        self.drop_named(inode, unused);
    }

    fn drop_named(&self, inode: &Inode, condition: impl Fn(&u64) -> bool) {
        if inode.by_name {
            let alias = inode.place.read().alias.clone();
            if let Some(alias) = alias {
                let key = (alias.parent.serial, alias.name);
                self.by_name
                    .remove_if(&key, |_, id| *id == inode.id && condition(id));
            }
        }
    }

    /// st_ino of the inode that stands for the upper object with number `key`, if it is known.
    pub fn known_ino(&self, key: u64) -> Option<u64> {
        self.find(key).map(|inode| inode.ino())
    }

    /// Says that a reference to a node will be given back that was not taken.
    pub fn owe_forget(&self, id: u64) {
        // What is owed the next server does not know, so here one is taken, if there is a node.
        if journal::active().is_some() && self.get(id).is_ok_and(|inode| inode.take_ref()) {
            return;
        }
        self.owed_sum.fetch_add(1, Ordering::AcqRel);
        *self.owed.entry(id).or_default() += 1;
    }

    /// What remains of `count` given back references once those that no one took are left out.
    pub fn without_owed(&self, id: u64, count: u64) -> u64 {
        if self.owed_sum.load(Ordering::Acquire) == 0 {
            return count;
        }
        let Slot::Occupied(mut owed) = self.owed.entry(id) else {
            return count;
        };
        let part = count.min(*owed.get());
        *owed.get_mut() -= part;
        if *owed.get() == 0 {
            owed.remove();
        }
        self.owed_sum.fetch_sub(part, Ordering::AcqRel);
        count - part
    }

    /// Gives back `count` references to a node. Returns the inodes that are gone by that.
    pub fn forget(&self, id: u64, count: u64) -> Vec<Arc<Inode>> {
        let mut gone = Vec::new();
        let mut pending = vec![(id, count)];
        while let Some((id, count)) = pending.pop() {
            if id == ROOT_ID {
                continue;
            }
            let Some(inode) = self.any(id) else {
                continue;
            };
            // Another id may lead to it.
            let id = inode.id;
            if !inode.drop_refs(count) {
                continue;
            }
            // A lookup may have taken a reference since; then the inode stays. Or it is gone already, and
            // another one has its id.
            let unused = |i: &Inode| std::ptr::eq(i, &raw const *inode) && i.refs() == 0;
            if !self.by_id.remove_if(id, unused) {
                continue;
            }
            self.drop_traces(&inode);
            if let Some(journal) = journal::active() {
                journal.remove(inode.cell);
            }
            let place = inode.place.read();
            pending.extend(place.all().map(|a| (a.parent.id, 1)));
            drop(place);
            gone.push(inode);
        }
        self.count_forgotten(gone.len() as u64);
        gone
    }

    /// Shrinks the tables each time their content has halved, so that memory follows the number of
    /// inodes at little cost.
    fn count_forgotten(&self, count: u64) {
        let before = self.forgotten.fetch_add(count, Ordering::Relaxed);
        let forgotten = before + count;
        // The length is looked at now and then only: that locks the whole table.
        let is_time = before / TRIM_LEAST != forgotten / TRIM_LEAST;
        if !is_time || forgotten < self.by_id.len() as u64 {
            return;
        }
        // One thread shrinks; what others count meanwhile is for the next time.
        let claimed = Ordering::Relaxed;
        if self
            .forgotten
            .compare_exchange(forgotten, 0, claimed, claimed)
            .is_ok()
        {
            self.by_id.shrink_to_fit();
            self.by_key.shrink_to_fit();
            self.by_name.shrink_to_fit();
            crate::sys::mount::trim_heap();
        }
    }
}

/// The numbers of an inode to be made.
struct Ids {
    id: u64,
    key: u64,
    ino: u64,
    by_name: bool,
}

/// What there was at a node id.
enum Met {
    /// The inode, made just now.
    Made(Arc<Inode>),
    /// The inode, with a reference more.
    Known(Arc<Inode>),
    /// Another one.
    Other,
}

impl Met {
    fn known(inode: &Arc<Inode>, is_it: bool) -> Self {
        if !is_it {
            return Self::Other;
        }
        inode.add_refs(1);
        Self::Known(Arc::clone(inode))
    }
}
