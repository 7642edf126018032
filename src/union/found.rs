//! What a lookup found.

use crate::layer::LayerIndex;
use crate::sys::Stat;

use super::inode::{DirStack, LowerPlace};

/// What a lookup found, to be given an inode.
#[derive(Debug)]
pub(crate) struct Found {
    /// Layer of the real object; of a directory, the top one.
    pub layer: LayerIndex,
    /// Its attributes.
    pub stat: Stat,
    /// The layers of a directory.
    pub stack: Option<DirStack>,
    /// The st_ino that a copy in the upper keeps from its origin.
    pub ino: Option<u64>,
    /// Where a redirected directory has its parts in the lowers.
    pub lower: Option<Box<LowerPlace>>,
    /// Subdirectories of a merged directory, if that is known.
    pub subdirs: Option<u32>,
    /// The object is the copy, in the upper, of a lower file with several names, and `stat` the
    /// copy's; `layer` is where the name is. The number of the lower file.
    pub plink: Option<u64>,
}

impl Found {
    /// An object of one layer.
    pub fn single(layer: LayerIndex, stat: Stat, stack: Option<DirStack>) -> Self {
        Self {
            layer,
            stat,
            stack,
            ino: None,
            lower: None,
            subdirs: None,
            plink: None,
        }
    }

    /// The same as the copy of lower file `number`.
    pub fn with_plink(mut self, number: Option<u64>) -> Self {
        self.plink = number;
        self.ino = number.or(self.ino);
        self
    }

    /// The layer of the object.
    pub fn object_layer(&self) -> LayerIndex {
        if self.plink.is_some() { 0 } else { self.layer }
    }
}
