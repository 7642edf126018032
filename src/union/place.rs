//! Where an inode is found: its names, and what there is instead of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::layer::LayerIndex;
use crate::layer::name::NameBuf;
use crate::layer::upper::Temp;

use super::inode::Inode;
use super::metacopy::DataPlace;

/// A name by which an inode is known.
#[derive(Clone, Debug)]
pub(crate) struct Alias {
    pub parent: Arc<Inode>,
    pub name: Box<[u8]>,
}

/// Stands for a handle that counts; given back when dropped.
#[derive(Clone, Debug)]
pub(crate) struct Permit(#[allow(dead_code)] Arc<()>);

/// Hands out permits.
#[derive(Debug, Default)]
pub(crate) struct Permits(Arc<()>);

impl Permits {
    /// A permit, however many are out.
    pub fn take(&self) -> Permit {
        Permit(Arc::clone(&self.0))
    }

    /// Number of permits that are out.
    pub fn taken(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// How an object without a name is held for those who still use it.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// By a handle, one of a limited number.
    Handle { fd: Arc<OwnedFd>, _permit: Permit },
    /// By a hidden link among the temporaries, when no descriptor could be had.
    Link(Arc<Temp>),
    /// By where it is in a lower that is no part of the union any more, or hidden by one that was added.
    Lower(Arc<Pinned>),
}

/// An object of a lower that a change of the layers has taken out of the tree.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// The layer.
    pub layer: LayerIndex,
    /// Its root directory, which stays open for as long as this is needed.
    pub root: Arc<OwnedFd>,
    /// The directory, from the root of the layer.
    pub dir: Vec<u8>,
    /// The name in it; empty for the root.
    pub name: NameBuf,
}

/// Where the parts of a directory in the lowers are, other than under its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct LowerPlace {
    /// The path in the union of the lowers alone, if the upper leads elsewhere than its own path.
    pub union: Option<Vec<u8>>,
    /// Paths from the roots of the layers, with slashes, each good for its layer and those below
    /// until the next.
    layers: Vec<(LayerIndex, Vec<u8>)>,
}

impl LowerPlace {
    /// Adds a path; layers come in their order.
    pub fn note(&mut self, layer: LayerIndex, path: Vec<u8>) {
        self.layers.push((layer, path));
    }

    /// The path in a layer, if it is not the one of the names.
    pub fn path(&self, layer: LayerIndex) -> Option<&[u8]> {
        let mut all = self.layers.iter().rev();
        // Numbers of layers that were added say nothing of an order.
        let own = all.clone().find(|(of, _)| *of == layer);
        let noted = own.or_else(|| all.find(|(from, _)| *from <= layer));
        noted.map(|(_, path)| path.as_slice())
    }
}

/// Where an inode is found (rank 4).
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// A name of it; for a lower object also the way to it in its layer, which stays after the
    /// name is gone from the union.
    pub alias: Option<Alias>,
    /// What most inodes have nothing of; one word in those.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    more: Vec<Alias>,
    lower: Option<Box<LowerPlace>>,
    data: Option<Box<DataPlace>>,
    held: Option<Held>,
}

impl Place {
    /// By a name, or the root.
    pub fn new(alias: Option<Alias>, lower: Option<Box<LowerPlace>>) -> Self {
        let mut place = Self { alias, rare: None };
        if lower.is_some() {
            place.change(|rare| rare.lower = lower);
        }
        place
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Rare) -> T) -> T {
        let rare = self.rare.get_or_insert_default();
        let result = change(rare);
        let Rare {
            more,
            lower,
            data,
            held,
        } = &**rare;
        if more.is_empty() && lower.is_none() && data.is_none() && held.is_none() {
            self.rare = None;
        }
        result
    }

    /// Further names of a linked file of the upper.
    pub fn more(&self) -> &[Alias] {
        self.rare.as_ref().map_or(&[], |rare| &rare.more)
    }

    /// All names.
    pub fn all(&self) -> impl Iterator<Item = &Alias> {
        self.alias.iter().chain(self.more())
    }

    /// All names, to be changed.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Alias> {
        let more = self.rare.iter_mut().flat_map(|rare| &mut rare.more);
        self.alias.iter_mut().chain(more)
    }

    /// Adds a further name.
    pub fn add(&mut self, alias: Alias) {
        self.change(|rare| rare.more.push(alias));
    }

    /// Takes the last of the further names.
    pub fn take_last(&mut self) -> Option<Alias> {
        self.rare.as_ref()?;
        self.change(|rare| rare.more.pop())
    }

    /// Takes the first of the further names that fits.
    pub fn take_further(&mut self, fits: impl Fn(&Alias) -> bool) -> Option<Alias> {
        let at = self.more().iter().position(fits)?;
        Some(self.change(|rare| rare.more.swap_remove(at)))
    }

    /// Where a moved or redirected directory has its parts in the lowers. Objects of the lowers
    /// without a name may still be in use below it.
    pub fn lower(&self) -> Option<&LowerPlace> {
        self.rare.as_ref()?.lower.as_deref()
    }

    /// Says where they are.
    pub fn set_lower(&mut self, lower: LowerPlace) {
        self.change(|rare| rare.lower = Some(Box::new(lower)));
    }

    /// Says that they are under its name.
    pub fn drop_lower(&mut self) {
        if self.lower().is_some() {
            self.change(|rare| rare.lower = None);
        }
    }

    /// The file of a lower that has the data of this one.
    pub fn data(&self) -> Option<&DataPlace> {
        self.rare.as_ref()?.data.as_deref()
    }

    /// Says which it is; returns what it was.
    pub fn set_data(&mut self, data: Option<DataPlace>) -> Option<DataPlace> {
        if data.is_none() && self.data().is_none() {
            return None;
        }
        let old = self.change(|rare| std::mem::replace(&mut rare.data, data.map(Box::new)));
        old.map(|old| *old)
    }

    /// The way to an upper object that no known name leads to.
    pub fn held(&self) -> Option<&Held> {
        self.rare.as_ref()?.held.as_ref()
    }

    /// Says which it is.
    pub fn set_held(&mut self, held: Option<Held>) {
        if held.is_some() || self.held().is_some() {
            let old = self.change(|rare| std::mem::replace(&mut rare.held, held));
            drop(old);
        }
    }
}
