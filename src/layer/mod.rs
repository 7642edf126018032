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
pub(crate) mod upper;
pub(crate) mod whiteout;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use open::LOCK_PATIENCE;
pub use open::LayerError;
pub(crate) use upper::Upper;

/// Position of a layer in its stack, 0 on top.
pub(crate) type LayerIndex = u16;

/// One directory tree that takes part in the union.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The directory, opened before anything is mounted. For a lower a read-only private clone of
    /// its mount where the system allows one.
    pub root: Arc<OwnedFd>,
    /// As the administrator wrote it; for messages only, never opened again.
    pub path: PathBuf,
    /// Device of the root directory.
    pub dev: u64,
    /// Its whiteouts and opaque marks count; else it is shown as if it had none.
    pub whiteouts: bool,
    /// The root is not a private clone, so mounts below it must not be entered.
    pub same_mount: bool,
}

/// All layers, top first. With an upper, it is layer 0.
#[derive(Debug)]
pub(crate) struct LayerStack {
    /// Top first.
    pub layers: Vec<Layer>,
    /// The writable layer's own state; `None` makes the union read-only.
    pub upper: Option<Upper>,
    /// The first layer is an upper, even if it is not written by this union.
    pub has_upper: bool,
}

impl LayerStack {
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
        let top = self.layers.first().filter(|_| self.has_upper);
        top.map(|layer| layer.dev)
    }

    /// A layer whose filesystem has no file handles, and so perhaps no inode numbers that last.
    pub fn without_handles(&self) -> Option<&Layer> {
        let mut layers = self.layers.iter();
        layers.find(|layer| !crate::sys::stat::has_handle(&*layer.root))
    }

    /// The layer at `index`.
    pub fn get(&self, index: LayerIndex) -> &Layer {
        &self.layers[usize::from(index)]
    }
}
