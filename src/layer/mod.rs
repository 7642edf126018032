//! What is on disk: layers, names, whiteouts, opaque marks, temporaries.
//!
//! Nothing here knows inodes or locks; the union decides what to do, this module how it looks in a
//! layer. `docs/FORMAT.md` describes the formats.

pub(crate) mod ability;
pub(crate) mod copy_tree;
mod device;
pub(crate) mod elsewhere;
pub(crate) mod name;
pub(crate) mod opaque;
pub(crate) mod open;
pub(crate) mod order;
pub(crate) mod origin;
pub(crate) mod plink;
pub(crate) mod private;
pub(crate) mod record;
pub(crate) mod remove_tree;
mod served;
pub(crate) mod upper;
pub(crate) mod whiteout;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

pub(crate) use open::LOCK_PATIENCE;
pub use open::LayerError;
pub(crate) use upper::Upper;

/// Names a layer for as long as the union lives. At the mount it is the position, 0 on top; a layer that
/// is added to a running union gets a number that no other has had, so numbers say nothing of an order
/// then but that the upper is 0.
pub(crate) type LayerIndex = u16;

/// Layers that can be added to a running union.
pub(crate) const MOST_ADDED: usize = 1024;

/// One directory tree that takes part in the union.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The directory, opened before anything is mounted. For a lower a read-only private clone of
    /// its mount where the system allows one.
    pub(super) root: RwLock<Arc<OwnedFd>>,
    /// As the administrator wrote it; for messages only, never opened again.
    pub path: PathBuf,
    /// Device of the root directory.
    pub dev: u64,
    /// Its whiteouts and opaque marks count; else it is shown as if it had none.
    pub whiteouts: bool,
    /// The root is not a private clone, so mounts below it must not be entered.
    pub same_mount: bool,
}

impl Layer {
    /// The directory.
    pub fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root.read())
    }

    /// Lets go of the directory: the layer is no part of the union any more. Who asks for it gets
    /// something that is no directory.
    fn let_go(&self, nothing: Arc<OwnedFd>) {
        *self.root.write() = nothing;
    }
}

/// All layers, top first. With an upper, it is layer 0.
#[derive(Debug)]
pub(crate) struct LayerStack {
    /// Those of the mount, top first; some may have been removed since.
    layers: Vec<Layer>,
    /// Those that were added since; each place is used once.
    added: OnceLock<Box<[OnceLock<Layer>]>>,
    /// Those that are in use, top first.
    order: RwLock<Arc<[LayerIndex]>>,
    /// The writable layer's own state; `None` makes the union read-only.
    pub upper: Option<Upper>,
    /// The first layer is an upper, even if it is not written by this union.
    pub has_upper: bool,
}

impl LayerStack {
    /// Of these layers, top first.
    pub fn of(layers: Vec<Layer>, upper: Option<Upper>, has_upper: bool) -> Self {
        let order = (0..layers.len()).filter_map(|at| LayerIndex::try_from(at).ok());
        Self {
            order: RwLock::new(order.collect()),
            added: OnceLock::new(),
            layers,
            upper,
            has_upper,
        }
    }

    /// The layers in use, top first.
    pub fn order(&self) -> Arc<[LayerIndex]> {
        Arc::clone(&self.order.read())
    }

    /// Says which layers are in use, top first.
    pub fn set_order(&self, order: &[LayerIndex]) {
        *self.order.write() = order.into();
    }

    /// The layers in use, top first, with their numbers.
    pub fn all(&self) -> Vec<(LayerIndex, &Layer)> {
        let order = self.order();
        order
            .iter()
            .map(|&index| (index, self.get(index)))
            .collect()
    }

    /// The layer on top.
    pub fn top(&self) -> Option<&Layer> {
        self.order().first().map(|&index| self.get(index))
    }

    /// Takes in a layer that is not in use yet; `None` when there were too many.
    pub fn add(&self, layer: Layer) -> Option<LayerIndex> {
        let places = self
            .added
            .get_or_init(|| (0..MOST_ADDED).map(|_| OnceLock::new()).collect());
        let at = places.iter().position(|place| place.get().is_none())?;
        let index = LayerIndex::try_from(self.layers.len() + at).ok()?;
        places[at].set(layer).is_ok().then_some(index)
    }

    /// Lets go of a layer that is not in use any more.
    pub fn let_go(&self, index: LayerIndex) {
        match crate::sys::fd::nothing() {
            Ok(nothing) => self.get(index).let_go(Arc::new(nothing)),
            Err(e) => tracing::warn!("a removed layer stays open: {e}"),
        }
    }

    /// True when `index` is the writable layer.
    pub fn is_upper(&self, index: LayerIndex) -> bool {
        index == 0 && self.upper.is_some()
    }

    /// True when `index` is the upper, even one that is not written now.
    pub fn is_top(&self, index: LayerIndex) -> bool {
        index == 0 && self.has_upper
    }

    /// Device of the upper, even of one that is not written now.
    pub fn top_dev(&self) -> Option<u64> {
        self.top().filter(|_| self.has_upper).map(|layer| layer.dev)
    }

    /// A layer whose filesystem has no file handles, and so perhaps no inode numbers that last.
    pub fn without_handles(&self) -> Option<&Layer> {
        let mut layers = self.layers.iter();
        layers.find(|layer| !crate::sys::stat::has_handle(&*layer.root()))
    }

    /// The layer at `index`.
    pub fn get(&self, index: LayerIndex) -> &Layer {
        let index = usize::from(index);
        match (self.layers.get(index), self.added.get()) {
            (None, Some(added)) => added
                .get(index - self.layers.len())
                .and_then(OnceLock::get)
                .unwrap_or(&self.layers[0]),
            _ => &self.layers[index],
        }
    }
}
