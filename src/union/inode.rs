//! The union's objects.

use crate::sys::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use crate::sys::sync::{Mutex, RwLock};
use smallvec::SmallVec;

use crate::layer::LayerIndex;
use crate::sys::FileKind;

use super::facts::Facts;
use super::journal::{self, Cell};
use super::known_names::Kept;
use super::metacopy::DataPlace;
use super::nlink::Subdirs;
use super::settled::Settled;

pub(crate) use super::place::{Alias, Held, LowerPlace, Permits, Pinned, Place};

/// Names of one inode that are remembered besides the first. An inode with more names is reached
/// through a held descriptor once all remembered ones are gone.
const MAX_MORE_NAMES: usize = 3;

/// Looks for single names of a directory before it is asked how large it is.
const FIRST_LOOKS_DUE: usize = 8;

/// A directory's part in one layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DirPart {
    /// The layer.
    pub layer: LayerIndex,
    /// Empty files in it may be whiteouts by attribute.
    pub xattr_whiteouts: bool,
    /// In the upper: some of its objects may be copies that keep their origin's inode number.
    pub copies: bool,
}

impl DirPart {
    /// A part of the upper that was just made.
    pub fn new_upper() -> Self {
        Self {
            layer: 0,
            xattr_whiteouts: false,
            copies: false,
        }
    }
}

/// The layers that make up a directory, top first.
pub(crate) type DirStack = SmallVec<[DirPart; 4]>;

/// What only a directory has.
#[derive(Debug)]
pub(crate) struct Dir {
    /// Serialises changes of the directory's names with lookups in it (rank 3).
    pub names: RwLock<()>,
    /// The layers; it changes when the directory is copied up, and when it is found otherwise with the tree
    /// lock written (rank 4).
    pub stack: RwLock<DirStack>,
    /// Subdirectories that it shows.
    pub subdirs: Subdirs,
    /// What its names stand for, if that is known (a leaf of the lock order).
    pub known: RwLock<Option<Box<Kept>>>,
    /// How often names have changed, or [`Self::known`] was forgotten.
    pub changes: AtomicUsize,
    /// It stands in the ring of those with such a listing.
    pub in_turns: AtomicBool,
    /// Looks into layers for single names since it was last read.
    pub looks: AtomicUsize,
    /// After so many it is time to read it.
    pub looks_due: AtomicUsize,
    /// Others may change it without our hearing of it.
    pub unwatched: AtomicBool,
    /// It is not made of the layers that it was last found in.
    pub suspect: AtomicBool,
}

impl Dir {
    fn new(stack: DirStack, subdirs: Option<u32>) -> Self {
        Self {
            names: RwLock::new(()),
            stack: RwLock::new(stack),
            subdirs: Subdirs::new(subdirs),
            known: RwLock::default(),
            changes: AtomicUsize::new(0),
            in_turns: AtomicBool::new(false),
            looks: AtomicUsize::new(0),
            looks_due: AtomicUsize::new(FIRST_LOOKS_DUE),
            unwatched: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
        }
    }

    /// True when objects of its upper part may be copies with a number of their own.
    pub fn has_copies(&self) -> bool {
        self.stack
            .read()
            .first()
            .is_some_and(|part| part.layer == 0 && part.copies)
    }
}

/// An object of the union with an identity: a file under all its names, or a directory.
#[derive(Debug)]
pub(crate) struct Inode {
    /// FUSE node id.
    pub id: u64,
    /// Never used twice; names the inode in caches.
    pub serial: u64,
    ino: AtomicU64,
    /// The number by which a lookup of the real object finds this inode; 0 when none does.
    pub key: AtomicU64,
    /// References of the kernel, and one for each inode that has this one as a parent.
    pub(super) refs: AtomicU64,
    /// Where it is noted for the next server.
    pub cell: Cell,
    layer: AtomicU16,
    pub kind: FileKind,
    unlinked: AtomicBool,
    /// Whether the data are elsewhere ([`Place::data`]), and a flush has brought to disk what leads to them.
    pub settled: Settled,
    plinked: AtomicBool,
    pub facts: Facts,
    /// Found again by (parent, name) instead of by its number.
    pub by_name: bool,
    /// Serialises copy-ups of this inode; the only lock held while its data move (rank 1).
    pub copying: Mutex<()>,
    pub place: RwLock<Place>,
    pub dir: Option<Box<Dir>>,
}

/// Values of a new inode.
#[derive(Debug)]
pub(crate) struct NewInode {
    pub id: u64,
    pub serial: u64,
    pub ino: u64,
    pub key: u64,
    pub layer: LayerIndex,
    pub kind: FileKind,
    pub by_name: bool,
    pub plinked: bool,
    pub alias: Option<Alias>,
    pub stack: Option<DirStack>,
    pub lower: Option<Box<LowerPlace>>,
    /// Subdirectories of a merged directory, if that is known.
    pub subdirs: Option<u32>,
    /// Where it is noted for the next server, with the references that it has.
    pub noted: (Cell, u64),
}

impl Inode {
    /// An inode with one reference.
    pub fn new(new: NewInode) -> Self {
        Self {
            id: new.id,
            serial: new.serial,
            ino: AtomicU64::new(new.ino),
            key: AtomicU64::new(new.key),
            refs: AtomicU64::new(new.noted.1),
            cell: new.noted.0,
            layer: AtomicU16::new(new.layer),
            kind: new.kind,
            unlinked: AtomicBool::new(false),
            settled: Settled::default(),
            plinked: AtomicBool::new(new.plinked),
            facts: Facts::default(),
            by_name: new.by_name,
            copying: Mutex::new(()),
            place: RwLock::new(Place::new(new.alias, new.lower)),
            dir: new
                .stack
                .map(|stack| Box::new(Dir::new(stack, new.subdirs))),
        }
    }

    /// st_ino.
    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Acquire)
    }

    /// Gives another st_ino.
    pub fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Release);
        if let Some(journal) = journal::active() {
            journal.set_ino(self.cell, ino);
        }
    }

    /// True for a copy in the upper that keeps the number of its origin.
    pub fn keeps_ino(&self) -> bool {
        self.ino() != self.key.load(Ordering::Acquire)
    }

    /// The layer of the real object; of a directory, its top one.
    pub fn layer(&self) -> LayerIndex {
        self.layer.load(Ordering::Acquire)
    }

    /// Says that the object is in the upper from now on.
    pub fn set_copied_up(&self) {
        self.layer.store(0, Ordering::Release);
    }

    /// Says that the top part of a directory is in another layer.
    pub fn set_layer(&self, layer: LayerIndex) {
        self.layer.store(layer, Ordering::Release);
    }

    /// True for an object that a change of the layers has taken out of the tree.
    pub fn is_pinned(&self) -> bool {
        matches!(self.place.read().held(), Some(Held::Lower(_)))
    }

    /// True once no name of the union leads here.
    pub fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// The layers of a directory, top first; empty for other objects.
    pub fn stack(&self) -> DirStack {
        self.dir
            .as_ref()
            .map(|d| d.stack.read().clone())
            .unwrap_or_default()
    }

    /// Some name of the union that leads here.
    pub fn alias(&self) -> Option<Alias> {
        if self.is_unlinked() {
            None
        } else {
            self.place.read().alias.clone()
        }
    }

    /// The same, or of an object of a lower the name that it had.
    pub fn alias_or_last(&self) -> Option<Alias> {
        self.place.read().alias.clone()
    }

    /// True when the data are those of another file.
    pub fn is_borrowed(&self) -> bool {
        self.settled.is_borrowed()
    }

    /// True when the data are known to be its own.
    pub fn is_whole(&self) -> bool {
        !self.is_borrowed() && self.facts.is_whole()
    }

    /// The file that has the data.
    pub fn data(&self) -> Option<DataPlace> {
        self.place.read().data().cloned()
    }

    /// Says that the data are in another file.
    pub fn borrow(&self, data: DataPlace) {
        let mut place = self.place.write();
        place.set_data(Some(data));
        self.facts.set_whole(false);
        self.settled.borrow();
    }

    /// The same, as somebody found it who held no lock against the data being brought: nothing is
    /// changed if they came meanwhile.
    pub fn borrow_unless_whole(&self, data: DataPlace) {
        let mut place = self.place.write();
        if !self.facts.is_whole() {
            place.set_data(Some(data));
            self.settled.borrow();
        }
    }

    /// Says that the object has its data itself; returns where they were.
    pub fn own_data(&self) -> Option<DataPlace> {
        let mut place = self.place.write();
        self.settled.own();
        self.facts.set_whole(true);
        place.set_data(None)
    }

    /// All names that are remembered; a lower object's first one may have gone from the union.
    pub fn aliases(&self) -> Vec<Alias> {
        self.place.read().all().cloned().collect()
    }

    /// Forgets a name of a lower object that keeps others. The first one stays: it is the way to
    /// the object in its layer.
    pub fn take_further_alias(&self, parent: &Inode, name: &[u8]) -> Option<Alias> {
        let mut place = self.place.write();
        let is_it = |a: &Alias| std::ptr::eq(&raw const *a.parent, parent) && *a.name == *name;
        let taken = place.take_further(is_it);
        self.note_names(&place);
        taken
    }

    /// Remembers another name, which pins its parent. Returns false when it is not kept.
    pub fn add_alias(&self, parent: &Arc<Inode>, name: &[u8]) -> bool {
        let mut place = self.place.write();
        let known = |a: &Alias| Arc::ptr_eq(&a.parent, parent) && *a.name == *name;
        if place.all().any(known) || place.more().len() >= MAX_MORE_NAMES {
            return false;
        }
        let alias = Alias {
            parent: Arc::clone(parent),
            name: name.into(),
        };
        parent.add_refs(1);
        if place.alias.is_none() {
            place.alias = Some(alias);
            place.set_held(None);
        } else {
            place.add(alias);
        }
        self.note_names(&place);
        true
    }

    /// Forgets a name; returns the alias (whose parent stays pinned until the caller gives that
    /// up) and whether another name is known.
    pub fn take_alias(&self, parent: &Inode, name: &[u8]) -> (Option<Alias>, bool) {
        let mut place = self.place.write();
        let is_it = |a: &Alias| std::ptr::eq(&raw const *a.parent, parent) && *a.name == *name;
        let taken = if place.alias.as_ref().is_some_and(is_it) {
            let next = place.take_last();
            std::mem::replace(&mut place.alias, next)
        } else {
            place.take_further(is_it)
        };
        self.note_names(&place);
        (taken, place.alias.is_some())
    }

    /// Replaces a name by another, as a rename does; the pins of the parents move along. Returns
    /// the old parent, whose pin the caller gives up. `lower` is where lowers have parts of a
    /// directory, if they have.
    pub fn move_alias(
        &self, from: (&Inode, &[u8]), to: (&Arc<Inode>, &[u8]), lower: Option<LowerPlace>,
    ) -> Option<Arc<Inode>> {
        let mut place = self.place.write();
        let is_it =
            |a: &&mut Alias| std::ptr::eq(&raw const *a.parent, from.0) && *a.name == *from.1;
        let known = place.all_mut().find(is_it)?;
        to.0.add_refs(1);
        let new = Alias {
            parent: Arc::clone(to.0),
            name: to.1.into(),
        };
        let old = std::mem::replace(known, new);
        if let Some(lower) = lower {
            place.set_lower(lower);
        }
        self.note_names(&place);
        Some(old.parent)
    }

    /// Has the next server know the names that it has now.
    pub fn note_names_again(&self) {
        self.note_names(&self.place.read());
    }

    /// Has the next server know the names.
    fn note_names(&self, place: &Place) {
        if let Some(journal) = journal::active() {
            let names: SmallVec<[&Alias; 4]> = place.all().collect();
            journal.note_names(self.cell, &names);
        }
    }

    /// Where `layer` has its part of a directory, from the root of the layer.
    ///
    /// Precondition: the tree lock is held.
    pub fn path_in(self: &Arc<Self>, layer: LayerIndex) -> Vec<u8> {
        self.path_by(|lower| lower.path(layer))
    }

    /// The path of a directory in the union of the lowers alone.
    ///
    /// Precondition: the tree lock is held.
    pub fn union_path(self: &Arc<Self>) -> Vec<u8> {
        self.path_by(|lower| lower.union.as_deref())
    }

    /// The same for the name `name` in it.
    pub fn union_path_with(self: &Arc<Self>, name: &[u8]) -> Vec<u8> {
        let mut path = self.union_path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// The names up to the root, or to a directory whose path is known.
    fn path_by(self: &Arc<Self>, known: impl Fn(&LowerPlace) -> Option<&[u8]>) -> Vec<u8> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut current = Arc::clone(self);
        loop {
            let alias = {
                let place = current.place.read();
                if let Some(path) = place.lower().and_then(&known) {
                    names.push(path.to_vec());
                    break;
                }
                place.alias.clone()
            };
            let Some(alias) = alias else { break };
            names.push(alias.name.into_vec());
            current = alias.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// True for the copy of a lower file with several names: it is reached through its entry among
    /// the pseudo-links, as a name may be the lower's.
    pub fn is_plinked(&self) -> bool {
        self.plinked.load(Ordering::Acquire)
    }

    /// Says whether it is.
    pub fn set_plinked(&self, plinked: bool) {
        self.plinked.store(plinked, Ordering::Release);
    }

    /// Marks the object as without a name in the union.
    pub fn set_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
        if let Some(journal) = journal::active() {
            journal.set_unlinked(self.cell);
        }
    }
}
