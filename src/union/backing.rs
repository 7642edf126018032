//! The real files that the kernel may read and write by itself.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;

use crate::layer::MOST_ADDED;
use crate::layer::{LayerIndex, elsewhere};
use crate::sys::{self, Errno, Result};

use super::Union;
use super::copy_up::Need;
use super::descriptors::{Real, Use};
use super::inode::Inode;
use super::types::Attr;

/// Which layer's file has the data of a node. It changes when the data come to the upper, and then
/// never again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source(LayerIndex);

impl Source {
    /// The position of the layer, 0 on top.
    pub fn layer(self) -> u16 {
        self.0
    }
}

/// An open file that has the data of a node.
#[derive(Clone, Debug)]
pub struct Backing {
    /// For reading at least.
    pub file: Arc<OwnedFd>,
    /// Where it is.
    pub source: Source,
    /// False when the file has more than the node shows: one whose data stay in a lower was cut, and the
    /// record of that place was not removed any more. Reading has to look at the size then.
    pub is_all_shown: bool,
    /// It is open for writing, too.
    pub writes: bool,
}

/// Takes the file that had the data of a node until now, which is in the upper's file since; the
/// file is asked for only if it is wanted.
pub(crate) type Listener = Box<dyn Fn(u64, &dyn Fn() -> Option<Arc<OwnedFd>>) + Send + Sync>;

impl Union {
    /// Where the data of a regular file are now, as far as it is known. Makes no system call.
    ///
    /// # Errors
    /// ESTALE when no one refers to such a node.
    pub fn source(&self, id: u64) -> Result<Source> {
        Ok(Self::source_of(&*self.inodes.get(id)?))
    }

    fn source_of(inode: &Inode) -> Source {
        let data = inode.is_borrowed().then(|| inode.data()).flatten();
        Source(data.map_or_else(|| inode.layer(), |data| data.layer))
    }

    /// More than any number of a layer.
    pub fn layer_count(&self) -> usize {
        self.layers.order().len() + MOST_ADDED
    }

    /// True for the layer that takes the changes.
    pub fn is_written(&self, source: Source) -> bool {
        self.layers.is_upper(source.0)
    }

    /// True when the kernel may get the files of a layer to itself. It opens them anew as their
    /// users ask, so those of a lower only if they are reached through a mount that is read-only.
    pub fn may_pass(&self, source: Source) -> bool {
        self.is_written(source) || !self.layers.get(source.0).same_mount
    }

    /// True when the first layer is on a filesystem that is itself made of others.
    pub fn top_is_stacked(&self) -> bool {
        let first = self.layers.top();
        first.is_some_and(|layer| sys::stat::is_stacked(&*layer.root()))
    }

    /// The file that has the data of a node. It is not kept open for later. If a crash came between the cut
    /// of a file whose data are elsewhere and the end of its record, the data are brought first.
    ///
    /// # Errors
    /// What open(2) of the real file gives.
    pub fn backing(&self, id: u64) -> Result<Backing> {
        let inode = self.inodes.get(id)?;
        self.regular(&inode)?;
        loop {
            let source = Self::source_of(&inode);
            let (file, usage) = self.open_once(&inode)?;
            // It may have been learned just now that the data are elsewhere, or they came up.
            if source != Self::source_of(&inode) {
                continue;
            }
            let is_all_shown = !inode.is_borrowed() || self.has_size_of(&inode, &file)?;
            if !is_all_shown && self.in_upper(&inode) {
                match self.fetch_data(&inode, Need::All) {
                    Ok(()) => continue,
                    // Reading by requests works all the same.
                    Err(e) => tracing::debug!("the data of a file that was cut stay below: {e}"),
                }
            }
            return Ok(Backing {
                file,
                source,
                is_all_shown,
                writes: usage == Use::Write,
            });
        }
    }

    /// True when an inode shows the size that the file of its data has.
    fn has_size_of(&self, inode: &Arc<Inode>, file: &OwnedFd) -> Result<bool> {
        let shown = self.with_real(inode, Real::stat)?.size;
        Ok(sys::stat::fstat(file)?.size == shown)
    }

    fn open_once(&self, inode: &Arc<Inode>) -> Result<(Arc<OwnedFd>, Use)> {
        if inode.is_borrowed() {
            return Ok((self.data_file(inode)?, Use::Data));
        }
        let layer = inode.layer();
        for usage in [Use::Read, Use::Write] {
            if let Some(file) = self.descriptors.file((inode.serial, layer, usage)) {
                return Ok((file, usage));
            }
        }
        let file = match self.open_file(inode, layer, false) {
            // The name was given to another file meanwhile: the usual way tries again.
            Err(Errno::STALE) => return Ok((self.file(inode, false)?, Use::Read)),
            file => Arc::new(file?),
        };
        if elsewhere::is_metacopy(&*file)? {
            self.learn_borrowed(inode)?;
        }
        Ok((file, Use::Read))
    }

    /// True when writes to the file have to come as requests, because they may change more than its
    /// data and times: set-id bits, of which the kernel does not know who may keep them, or any
    /// where attributes are kept in records.
    ///
    /// # Errors
    /// What stat(2) of the real object gives.
    pub fn must_see_writes(&self, id: u64) -> Result<bool> {
        if self.owners.keeps_records() {
            return Ok(true);
        }
        Ok(self.must_see_writes_of(&self.getattr(id)?))
    }

    /// The same where the attributes are known.
    pub fn must_see_writes_of(&self, attr: &Attr) -> bool {
        self.owners.keeps_records() || attr.stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0
    }

    /// Fails where the real file cannot be opened with O_DIRECT.
    ///
    /// # Errors
    /// EINVAL, as open(2) of the real file.
    pub fn check_direct(&self, backing: &Backing) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::NONBLOCK;
        self.with_descriptors(|| sys::fd::reopen(&*backing.file, flags))
            .map(drop)
    }

    /// Sends the files that had the data of nodes until a copy-up to `listener`. Locks may be held.
    pub(crate) fn on_data_moved(&self, listener: Listener) {
        self.data_moved.set(listener);
    }

    /// The data of the inode were in the file `source`, or else in the one that is cached for that use of
    /// that layer.
    pub(super) fn tell_data_moved(
        &self, inode: &Inode, (layer, usage): (LayerIndex, Use), source: Option<&Arc<OwnedFd>>,
    ) {
        let Some(listener) = self.data_moved.get() else {
            return;
        };
        let cached = || self.descriptors.file((inode.serial, layer, usage));
        let file = || source.cloned().or_else(cached);
        for id in self.node_ids(inode.id).unwrap_or_default() {
            listener(id, &file);
        }
    }
}

/// The way to whoever keeps such files; nobody, where the kernel does not get files to itself.
#[derive(Default)]
pub(super) struct DataMoved(OnceLock<Listener>);

impl DataMoved {
    fn set(&self, listener: Listener) {
        let _ = self.0.set(listener);
    }

    fn get(&self) -> Option<&Listener> {
        self.0.get()
    }
}

impl fmt::Debug for DataMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = self.0.get().is_some();
        f.debug_tuple("DataMoved").field(&is_set).finish()
    }
}
