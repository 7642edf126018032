//! What the names of directories stand for, kept from one look at a whole directory on.
//!
//! With it a lookup goes to the one layer that has the object, a name that is not there costs no
//! call, and a change knows what is hidden where. It is right because whoever changes the names of a
//! directory says here what came of it ([`NamesWrite`]), or it is dropped: nothing here is needed,
//! all of it can be read again. What the layers do not have any more, though nobody said so, is
//! looked for anew.
//!
//! All listings together take a limited amount of memory; those that nobody used lately go first.

use crate::sys::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use crate::sys::sync::Mutex;
use smallvec::SmallVec;

use crate::layer::LayerIndex;
use crate::sys::{self, FileKind, Result};

use super::Union;
use super::inode::{Dir, Inode};
use super::lookup::dir_of;
use super::names::{Info, Names};
use super::rank::NamesWrite;

/// Memory for all listings, in bytes. A single larger one is kept until it was read to its end.
const BUDGET: usize = 16 << 20;
/// Memory of an empty one.
const BYTES_PER_DIRECTORY: usize = 160;
/// Looking a name up in a layer costs about as much as reading so many bytes of a directory.
const BYTES_PER_LOOK: u64 = 128;
/// Size of a small directory in bytes.
const BLOCK: u64 = 4096;
/// Looks into one layer that cost as much as opening and reading a small directory.
const LOOKS_PER_LAYER: usize = 8;

/// Memory of one listing, counted until it is dropped.
#[derive(Debug)]
struct Share {
    all: Arc<AtomicUsize>,
    own: usize,
}

impl Share {
    fn set(&mut self, own: usize) {
        self.all.fetch_add(own, Ordering::Relaxed);
        self.all.fetch_sub(self.own, Ordering::Relaxed);
        self.own = own;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// The listing of one directory.
#[derive(Debug)]
pub(crate) struct Kept {
    names: Names,
    /// It is good for more than being read on.
    lasts: bool,
    /// Since someone last looked for one to drop.
    used: AtomicBool,
    share: Share,
}

/// Sees to it that all listings together stay within limits.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Listings are good for more than being read on.
    names_last: bool,
    bytes: Arc<AtomicUsize>,
    /// All directories with a listing, and some that had one; in turns.
    pub(super) ring: Mutex<VecDeque<Weak<Inode>>>,
    /// Listings in the ring when those without were last taken out.
    least: AtomicUsize,
}

impl Keeper {
    /// Of nothing yet.
    pub fn new(names_last: bool) -> Self {
        Self {
            names_last,
            bytes: Arc::default(),
            ring: Mutex::default(),
            least: AtomicUsize::new(0),
        }
    }

    /// Memory of all listings, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Keeps a listing; for being read on only, unless it `lasts`.
    fn keep(&self, inode: &Arc<Inode>, dir: &Dir, names: Names, lasts: bool) {
        let mut share = Share {
            all: Arc::clone(&self.bytes),
            own: 0,
        };
        share.set(BYTES_PER_DIRECTORY + names.bytes());
        *dir.known.write() = Some(Box::new(Kept {
            names,
            lasts: lasts && self.names_last && !dir.unwatched.load(Ordering::Acquire),
            used: AtomicBool::new(true),
            share,
        }));
        if dir.in_turns.swap(true, Ordering::AcqRel) {
            return self.shrink(inode);
        }
        let mut ring = self.ring.lock();
        ring.push_back(Arc::downgrade(inode));
        if ring.len() > 2 * self.least.load(Ordering::Relaxed) + 1024 {
            ring.retain(|inode| inode.strong_count() > 0);
            self.least.store(ring.len(), Ordering::Relaxed);
        }
        drop(ring);
        self.shrink(inode);
    }

    /// Drops what was not used lately until the rest is within limits; `last` stays.
    fn shrink(&self, last: &Arc<Inode>) {
        let mut tries = self.ring.lock().len().saturating_mul(2);
        while self.bytes.load(Ordering::Relaxed) > BUDGET && tries > 1 {
            tries -= 1;
            let Some(next) = self.ring.lock().pop_front() else {
                return;
            };
            // Dropped outside of the lock, with the inode if nobody else has it.
            let Some(inode) = next.upgrade() else {
                continue;
            };
            let Some(dir) = &inode.dir else { continue };
            let mut known = dir.known.write();
            match &*known {
                // Under this lock: who keeps a listing looks for its place in the ring afterwards.
                None => dir.in_turns.store(false, Ordering::Release),
                Some(kept)
                    if kept.used.swap(false, Ordering::Relaxed) || Arc::ptr_eq(&inode, last) =>
                {
                    drop(known);
                    self.ring.lock().push_back(next);
                }
                Some(_) => {
                    *known = None;
                    dir.in_turns.store(false, Ordering::Release);
                }
            }
        }
    }
}

/// What is known of a name.
#[derive(Debug)]
pub(super) enum Told {
    /// Nothing.
    Unknown,
    /// It does not show, and the upper has nothing there.
    Absent,
    /// This, with the further layers that may have parts of a directory.
    There(Info, SmallVec<[LayerIndex; 4]>),
}

impl Dir {
    /// What is known of a name without a look.
    ///
    /// Precondition: the names are locked.
    pub fn told(&self, name: &[u8]) -> Told {
        let known = self.known.read();
        let Some(kept) = known.as_ref().filter(|kept| kept.lasts) else {
            return Told::Unknown;
        };
        if !kept.used.load(Ordering::Relaxed) {
            kept.used.store(true, Ordering::Relaxed);
        }
        match kept.names.get(name) {
            None => Told::Absent,
            Some((info, _)) if info.odd => Told::Unknown,
            Some((info, below)) => Told::There(info, SmallVec::from_slice(below)),
        }
    }

    /// Calls `look` with the listing, if it is known.
    pub(super) fn with_names<T>(&self, look: impl FnOnce(&Names) -> T) -> Option<T> {
        let known = self.known.read();
        known.as_ref().map(|kept| look(&kept.names))
    }

    /// The same, if it is good for more than being read on.
    pub(super) fn with_lasting_names<T>(&self, look: impl FnOnce(&Names) -> T) -> Option<T> {
        let known = self.known.read();
        let kept = known.as_ref().filter(|kept| kept.lasts);
        kept.map(|kept| look(&kept.names))
    }

    /// Forgets a listing that is only good for being read on.
    pub(super) fn forget_short_lived(&self) {
        let mut known = self.known.write();
        if known.as_ref().is_some_and(|kept| !kept.lasts) {
            *known = None;
        }
    }

    /// Forgets the listing, as it may be wrong from now on.
    ///
    /// Precondition: the names or the tree lock are written.
    pub fn forget_names(&self) {
        self.changed();
        let old = self.known.write().take();
        drop(old);
    }

    /// Forgets the listing if it was for being read to its end, or is too large to stay.
    fn forget_read(&self) {
        let mut known = self.known.write();
        let goes = |kept: &Kept| !kept.lasts || kept.names.bytes() > BUDGET / 2;
        if known.as_deref().is_some_and(goes) {
            *known = None;
        }
    }

    /// Whoever is reading the directory at this moment must not keep what he read.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes a change to the listing, if it is known.
    fn change(&self, change: impl FnOnce(&mut Names) -> bool) {
        let mut known = self.known.write();
        let Some(kept) = &mut *known else { return };
        if change(&mut kept.names) {
            let bytes = kept.names.bytes();
            kept.share.set(BYTES_PER_DIRECTORY + bytes);
        } else {
            *known = None;
        }
    }
}

impl NamesWrite<'_> {
    /// Nothing has changed.
    pub fn unchanged(&self) {
        self.settle();
    }

    /// Says what a name stands for from now on; nothing when it is gone, and the upper hides nothing
    /// there. `new` is given what it stood for.
    pub(super) fn note(&self, name: &[u8], new: impl FnOnce(Option<Info>) -> Option<Info>) {
        self.dir().changed();
        self.dir().change(|names| {
            let old = names.get(name).map(|(info, _)| info);
            !old.is_some_and(|old| old.odd) && names.set(name, new(old), &[])
        });
        self.settle();
    }

    /// Says that the upper has an object of its own now where lowers showed it.
    pub fn note_copied_up(&self, name: &[u8]) {
        self.dir().changed();
        self.dir().change(|names| {
            let Some((old, below)) = names.get(name) else {
                return false;
            };
            let new = Info::in_upper(old.kind, old.ino, true);
            let mut layers: SmallVec<[LayerIndex; 4]> = SmallVec::new();
            if old.kind == FileKind::Directory {
                layers.extend((old.layer > 0).then_some(old.layer));
                layers.extend_from_slice(below);
            }
            old.shown && !old.odd && names.set(name, Some(new), &layers)
        });
        self.settle();
    }
}

impl Union {
    /// Says of a directory that was just made that it is empty.
    ///
    /// Precondition: nobody else knows it, or its parent's names are written.
    pub(super) fn know_empty(&self, inode: &Arc<Inode>) {
        if let Some(dir) = &inode.dir
            && dir.stack.read().len() == 1
            // Others may make names before it is watched, which is with the first look.
            && !self.watching.is_notify()
        {
            self.known_names.keep(inode, dir, Names::default(), true);
        }
    }

    /// Counts looks into layers for a name of a directory; once they have cost about as much as
    /// reading it all would, that is done.
    ///
    /// Precondition: the tree lock and the directory's names are held.
    pub(super) fn count_looks(&self, inode: &Arc<Inode>, looks: usize) {
        let Some(dir) = inode.dir.as_ref().filter(|_| self.known_names.names_last) else {
            return;
        };
        let made = dir.looks.fetch_add(looks, Ordering::Relaxed) + looks;
        if made < dir.looks_due.load(Ordering::Relaxed) || inode.is_unlinked() {
            return;
        }
        if let Err(e) = self.look_at_all(inode, dir, made) {
            tracing::debug!("a directory cannot be read: {e}");
            dir.looks_due.store(usize::MAX, Ordering::Relaxed);
        }
    }

    fn look_at_all(&self, inode: &Arc<Inode>, dir: &Dir, made: usize) -> Result<()> {
        let stack = inode.stack();
        let mut fds: SmallVec<[Arc<OwnedFd>; 4]> = SmallVec::new();
        let mut size = 0;
        for part in &stack {
            let fd = self.dir_fd(inode, part.layer)?;
            // The smallest directories of some filesystems are one block, however little is in it.
            size += sys::stat::fstat(&*fd)?.size.saturating_sub(BLOCK);
            fds.push(fd);
        }
        let due = usize::try_from(size / BYTES_PER_LOOK).unwrap_or(usize::MAX);
        let due = due.saturating_add(stack.len() * LOOKS_PER_LAYER);
        if made < due {
            dir.looks_due.store(due, Ordering::Relaxed);
            return Ok(());
        }
        if size > BUDGET as u64 / 2 {
            // It could not be kept, as names take no less there.
            dir.looks_due.store(usize::MAX, Ordering::Relaxed);
            return Ok(());
        }
        let changes = dir.changes.load(Ordering::Acquire);
        let names = self.read_names(&stack, &fds)?;
        if names.bytes() > BUDGET / 2 {
            dir.looks_due.store(usize::MAX, Ordering::Relaxed);
            return Ok(());
        }
        dir.looks.store(0, Ordering::Relaxed);
        self.keep_names(inode, dir, changes, names);
        Ok(())
    }

    /// Keeps the listing of a directory unless its names have changed since there were so many
    /// `changes`; then returns it.
    ///
    /// Precondition: the tree lock and the directory's names are held.
    pub(super) fn keep_names(
        &self, inode: &Arc<Inode>, dir: &Dir, changes: usize, names: Names,
    ) -> Option<Names> {
        // With the tree lock written copies come to their places without the names' locks.
        let is_same = dir.changes.load(Ordering::Acquire) == changes;
        if !is_same || self.tree.is_written() || inode.is_unlinked() {
            return Some(names);
        }
        self.known_names.keep(inode, dir, names, true);
        None
    }

    /// Reads a directory whole and keeps the listing, if only for being read on where its names have
    /// changed meanwhile. Returns it if it cannot be kept.
    ///
    /// Precondition: no lock is held. None is while the directory is read, which may take long: a handle
    /// stays right when an ancestor moves, and changes are counted.
    pub(super) fn read_and_keep(&self, inode: &Arc<Inode>) -> Result<Option<Names>> {
        let dir = dir_of(inode)?;
        let tree = self.tree.read();
        if inode.is_unlinked() {
            return Ok(Some(Names::default()));
        }
        // A change that is under way counts when it is done.
        let changes = dir.changes.load(Ordering::Acquire);
        let stack = inode.stack();
        let fds = stack.iter().map(|part| self.dir_fd(inode, part.layer));
        let fds = fds.collect::<Result<SmallVec<[_; 4]>>>()?;
        drop(tree);
        let names = self.read_names(&stack, &fds)?;
        let names = match self.tree.try_read() {
            Some(_tree) => {
                let _names = dir.read_names();
                self.keep_names(inode, dir, changes, names)
            }
            None => Some(names),
        };
        if let Some(names) = names {
            if inode.is_unlinked() {
                return Ok(Some(names));
            }
            self.known_names.keep(inode, dir, names, false);
        }
        Ok(None)
    }

    /// The listing of a directory was read to its end.
    pub(super) fn end_of_listing(inode: &Inode) {
        if let Some(dir) = &inode.dir {
            dir.forget_read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::{DirPart, DirStack, NewInode};
    use super::super::names::Entry;
    use super::*;

    fn directory(id: u64) -> Arc<Inode> {
        Arc::new(Inode::new(NewInode {
            id,
            serial: id,
            ino: id,
            key: id,
            layer: 0,
            kind: FileKind::Directory,
            by_name: false,
            plinked: false,
            alias: None,
            stack: Some(DirStack::from_slice(&[DirPart::new_upper()])),
            lower: None,
            subdirs: None,
            noted: (super::super::journal::Cell::default(), 1),
        }))
    }

    fn listing(count: u64) -> Names {
        Names::new((0..count).map(|n| {
            let name = format!("name-{n:09}").into_bytes().into();
            let info = Info::in_upper(FileKind::Regular, n, false);
            (Entry { name, info }, Vec::new())
        }))
    }

    fn is_known(inode: &Inode) -> bool {
        inode
            .dir
            .as_ref()
            .is_some_and(|dir| dir.known.read().is_some())
    }

    #[test]
    fn listings_take_limited_memory_and_give_it_back() {
        let keeper = Keeper::new(true);
        let dirs: Vec<_> = (2..7).map(directory).collect();
        for inode in &dirs {
            keeper.keep(inode, inode.dir.as_ref().unwrap(), listing(50_000), true);
            assert!(is_known(inode), "what was kept last stays");
            assert!(keeper.bytes.load(Ordering::Relaxed) <= BUDGET);
        }
        let known = dirs.iter().filter(|inode| is_known(inode)).count();
        assert!((1..dirs.len()).contains(&known));
        let large = directory(9);
        keeper.keep(&large, large.dir.as_ref().unwrap(), listing(300_000), true);
        assert!(is_known(&large) && !dirs.iter().any(|inode| is_known(inode)));
        Union::end_of_listing(&large);
        assert!(!is_known(&large));
        assert_eq!(keeper.bytes.load(Ordering::Relaxed), 0);
        for id in 10..10_000 {
            let inode = directory(id);
            keeper.keep(&inode, inode.dir.as_ref().unwrap(), Names::default(), true);
        }
        assert!(keeper.ring.lock().len() < 2_000, "those that are gone go");
        let living = directory(10_000);
        for _ in 0..10_000 {
            keeper.keep(
                &living,
                living.dir.as_ref().unwrap(),
                Names::default(),
                true,
            );
        }
        assert!(keeper.ring.lock().len() < 2_000, "each stands there once");
    }
}
