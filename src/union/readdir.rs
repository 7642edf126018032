//! Open directories.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::layer::name::NameBuf;
use crate::sys::{Errno, FileKind, Result};

use super::Union;
use super::inode::Inode;
use super::lookup::dir_of;
use super::types::DirEntry;

/// Positions of the first two entries.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// A directory that is being read: the listing of its last rewind.
#[derive(Debug)]
pub(crate) struct OpenDir {
    inode: Arc<Inode>,
    listing: Mutex<Option<Arc<[DirEntry]>>>,
}

impl Union {
    /// Opens a directory for reading; the handle is to be given to [`Self::closedir`].
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn opendir(&self, id: u64) -> Result<u64> {
        let inode = self.inodes.get(id)?;
        dir_of(&inode)?;
        let handle = self.next_dir_handle.fetch_add(1, Ordering::Relaxed);
        let open = OpenDir {
            inode,
            listing: Mutex::new(None),
        };
        self.open_dirs.insert(handle, Arc::new(open));
        Ok(handle)
    }

    /// Closes a directory handle.
    pub fn closedir(&self, handle: u64) {
        self.open_dirs.remove(&handle);
    }

    /// Gives `each` the entries after position `from` until it returns false. Position 0 starts
    /// anew and sees the directory as it is now; any other goes on in the listing of the last
    /// start, and means the same in a new one.
    ///
    /// # Errors
    /// EBADF, and what reading the layers gives.
    pub fn readdir(
        &self, handle: u64, from: u64, mut each: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let open = self
            .open_dirs
            .get(&handle)
            .map(|o| Arc::clone(&o))
            .ok_or(Errno::BADF)?;
        let known = open.listing.lock().clone().filter(|_| from != 0);
        let listing = match known {
            Some(listing) => listing,
            None => {
                let listing: Arc<[DirEntry]> = self.listing(&open.inode)?.into();
                *open.listing.lock() = Some(Arc::clone(&listing));
                listing
            }
        };
        if from < DOT_DOT {
            let parent = open
                .inode
                .alias()
                .map_or(open.inode.ino(), |a| a.parent.ino());
            let dots = [
                (b".".as_slice(), open.inode.ino(), DOT),
                (b"..", parent, DOT_DOT),
            ];
            for (name, ino, next) in dots {
                let name = NameBuf::from_slice(name);
                let entry = DirEntry {
                    name,
                    ino: self.shown(ino),
                    kind: FileKind::Directory,
                    next,
                };
                if from < next && !each(&entry) {
                    return Ok(());
                }
            }
        }
        let start = listing.partition_point(|entry| entry.next <= from);
        for entry in &listing[start..] {
            let ino = self.shown(entry.ino);
            let goes_on = if ino == entry.ino {
                each(entry)
            } else {
                each(&DirEntry {
                    ino,
                    ..entry.clone()
                })
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// The merged listing of a directory. The tree lock is not held while it is read: a handle
    /// stays right when an ancestor moves.
    pub(super) fn listing(&self, inode: &Arc<Inode>) -> Result<Vec<DirEntry>> {
        let dir = dir_of(inode)?;
        let tree = self.tree.read();
        let _names = dir.read_names();
        let stack = inode.stack();
        if inode.is_unlinked() {
            return Ok(Vec::new());
        }
        let fds = stack
            .iter()
            .map(|part| self.dir_fd(inode, part.layer).map(|fd| (part.layer, fd)))
            .collect::<Result<Vec<_>>>()?;
        drop(tree);
        self.list(&stack, |layer| {
            let fd = fds.iter().find(|(l, _)| *l == layer);
            fd.map(|(_, fd)| Arc::clone(fd)).ok_or(Errno::IO)
        })
    }
}
