//! Reading directories.

use std::sync::Arc;

use crate::layer::name::NameBuf;
use crate::sys::{Errno, FileKind, Result};

use super::Union;
use super::inode::Inode;
use super::lookup::dir_of;
use super::types::DirEntry;

/// Positions of the first two entries.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

impl Union {
    /// Gives `each` the entries of a directory after position `from` until it returns false.
    /// Position 0 starts anew and sees the directory as it is now; any other goes on in the listing
    /// of the last start, and means the same in a new one.
    ///
    /// # Errors
    /// ENOTDIR, and what reading the layers gives.
    pub fn readdir(
        &self, id: u64, from: u64, mut each: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let inode = self.inodes.get(id)?;
        let known = self.recent.get(inode.serial).filter(|_| from != 0);
        let listing = match known {
            Some(listing) => listing,
            None => {
                let listing: Arc<[DirEntry]> = self.listing(&inode)?.into();
                self.recent.keep(inode.serial, &listing);
                listing
            }
        };
        if from < DOT_DOT {
            let parent = inode
                .alias()
                .map_or(inode.ino(), |alias| alias.parent.ino());
            let dots = [
                (b".".as_slice(), inode.ino(), DOT),
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
        if start == listing.len() && from >= DOT_DOT {
            // Nothing follows the end, which is asked for too.
            self.recent.drop(inode.serial);
        }
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
