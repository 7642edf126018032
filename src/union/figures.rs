//! What is counted, and what can be told of the layers: for `unionfs ctl`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::options::WhiteoutForm;
use crate::sys;

use super::Union;

/// Counters. Each is one addition that orders nothing.
#[derive(Debug, Default)]
pub(super) struct Counted {
    copy_ups: AtomicU64,
    copied_bytes: AtomicU64,
    /// Names that were looked for and known.
    known: AtomicU64,
    /// Names for which the layers had to be asked.
    asked: AtomicU64,
    /// Files that were open already.
    open: AtomicU64,
    /// Files that had to be opened.
    opened: AtomicU64,
}

fn more(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counted {
    /// An object was brought to the upper.
    pub fn copy_up(&self) {
        more(&self.copy_ups, 1);
    }

    /// Its data were.
    pub fn copied(&self, bytes: u64) {
        more(&self.copied_bytes, bytes);
    }

    /// A name was looked for.
    pub fn name(&self, is_known: bool) {
        more(if is_known { &self.known } else { &self.asked }, 1);
    }

    /// A file was needed open.
    pub fn file(&self, is_open: bool) {
        more(if is_open { &self.open } else { &self.opened }, 1);
    }
}

/// What there is and was, at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Objects brought to the upper.
    pub copy_ups: u64,
    /// Bytes of data that went with them.
    pub copied_bytes: u64,
    /// Names that were looked for and known.
    pub names_known: u64,
    /// Names for which the layers had to be asked.
    pub names_asked: u64,
    /// Memory of the listings that are kept, in bytes.
    pub listing_bytes: u64,
    /// Objects that the kernel knows.
    pub inodes: u64,
    /// Directory handles that are kept.
    pub dir_handles: u64,
    /// Open files that are kept.
    pub file_handles: u64,
    /// Handles of objects without a name.
    pub held: u64,
    /// How often a file was open already when it was needed.
    pub files_open: u64,
    /// How often it had to be opened.
    pub files_opened: u64,
    /// Files with several names that pseudo-links hold together.
    pub plinks: u64,
}

/// What can be told of a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerFacts {
    /// Its number.
    pub index: usize,
    /// As the administrator wrote it.
    pub path: PathBuf,
    /// It is the upper, even of a mount that takes no changes.
    pub is_upper: bool,
    /// Its whiteouts and opaque marks count.
    pub whiteouts: bool,
    /// It is reached through a mount of our own, which nobody else sees.
    pub is_private: bool,
    /// Device number.
    pub dev: u64,
    /// The type of its filesystem, a number of statfs(2).
    pub filesystem: u64,
}

/// What can be told of the upper.
#[derive(Clone, Debug)]
pub(crate) struct UpperFacts {
    /// How whiteouts are written.
    pub form: WhiteoutForm,
    /// How they were asked to be written.
    pub asked: WhiteoutForm,
    /// What is not possible there, in words; `None` when that could not be found out.
    pub missing: Option<Vec<&'static str>>,
}

impl Union {
    /// What there is and was.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = &self.counted;
        let (dirs, files) = self.descriptors.kept();
        Figures {
            copy_ups: read(&counted.copy_ups),
            copied_bytes: read(&counted.copied_bytes),
            names_known: read(&counted.known),
            names_asked: read(&counted.asked),
            listing_bytes: self.known_names.bytes() as u64,
            inodes: self.inodes.len() as u64,
            dir_handles: dirs as u64,
            file_handles: files as u64,
            held: self.descriptors.held.taken() as u64,
            files_open: read(&counted.open),
            files_opened: read(&counted.opened),
            plinks: self.plinks.all().len() as u64,
        }
    }

    /// What can be told of the layers, top first.
    pub(crate) fn layer_facts(&self) -> Vec<LayerFacts> {
        let layers = self.layers.all().into_iter();
        layers
            .map(|(index, layer)| LayerFacts {
                index: usize::from(index),
                path: layer.path.clone(),
                is_upper: self.layers.has_upper && index == 0,
                whiteouts: layer.whiteouts,
                is_private: !layer.same_mount,
                dev: layer.dev,
                filesystem: sys::stat::filesystem_type(&*layer.root()).unwrap_or(0),
            })
            .collect()
    }

    /// What can be told of the upper, if it takes changes.
    pub(crate) fn upper_facts(&self) -> Option<UpperFacts> {
        let upper = self.layers.upper.as_ref()?;
        let (form, asked) = upper.forms();
        Some(UpperFacts {
            form,
            asked,
            missing: upper.missing(),
        })
    }

    /// The path of a node from the root of the union, by the first of its names that is remembered;
    /// nothing when there is no such node or name.
    ///
    /// Precondition: no lock is held.
    pub(crate) fn path_of(&self, id: u64) -> Option<Vec<u8>> {
        let inode = self.inodes.get(id).ok()?;
        let _tree = self.tree.read();
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut next = inode.alias();
        if next.is_none() && inode.id != super::ROOT {
            return None;
        }
        while let Some(alias) = next {
            names.push(alias.name);
            next = alias.parent.alias();
        }
        names.push([].into());
        names.reverse();
        Some(match names.len() {
            1 => b"/".to_vec(),
            _ => names.join(&b'/'),
        })
    }
}
