//! Looking names up: what a name stands for gets an inode.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layer::LayerStack;
use crate::layer::name::Name;
use crate::layer::opaque;
use crate::layer::origin;
use crate::sys::{Errno, Result, Stat};

use super::Union;
use super::find::FoundDir;
use super::inode::{Dir, DirPart, DirStack, Held, Inode};
use super::inode_table::Found;
use super::metacopy::shows_holes;
use super::types::{Attr, Entry, Keep};

/// How often a name is looked for when each time its file was copied up in between.
const TRIES: usize = 100;

/// The layers of the union's root, top first, down to the first opaque one.
pub(crate) fn root_stack(layers: &LayerStack) -> Result<DirStack> {
    let mut stack = DirStack::new();
    for (index, layer) in layers.all() {
        let marks = opaque::read(layer.root().as_fd())?;
        if marks.redirect.is_some() {
            tracing::error!(
                "{}: the root of the layer is redirected",
                layer.path.display()
            );
            return Err(Errno::LOOP);
        }
        stack.push(DirPart {
            layer: index,
            xattr_whiteouts: marks.xattr_whiteouts,
            copies: marks.copies,
        });
        if layer.whiteouts && (marks.opaque || opaque::has_marker_file(layer.root().as_fd())?) {
            break;
        }
    }
    Ok(stack)
}

/// The directory's own state.
pub(super) fn dir_of(inode: &Inode) -> Result<&Dir> {
    inode.dir.as_deref().ok_or(Errno::NOTDIR)
}

impl Union {
    /// Looks `name` up in a directory and counts a reference to what it finds. `Ok(None)` when
    /// there is no such name.
    ///
    /// # Errors
    /// ENOTDIR, ENAMETOOLONG, EIO for a malformed or unsupported layer, and what reading the
    /// layers gives.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Entry>> {
        let parent = self.inodes.get(parent)?;
        let dir = dir_of(&parent)?;
        let name = Name::new(name)?;
        let look = || {
            let _tree = self.tree.read();
            let _names = dir.read_names();
            let found = self.lookup_locked(&parent, name)?;
            self.note_absent(&parent, name.bytes(), found.is_none());
            Ok(found)
        };
        let found = look()?;
        match &found {
            Some(entry) if !self.watching.is_sure() && self.doubt(entry.id) => {
                self.forget(entry.id, 1);
                look()
            }
            _ => Ok(found),
        }
    }

    /// [`Self::lookup`] with the tree lock and the parent's names held.
    pub(super) fn lookup_locked(
        &self, parent: &Arc<Inode>, name: Name<'_>,
    ) -> Result<Option<Entry>> {
        if name.is_reserved() {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let Some(found) = self.find(parent, name)? else {
                return Ok(None);
            };
            let seen = self
                .number_by_lower(&found.found)
                .map(|n| (n, found.found.plink));
            let entry = self.intern(parent, name, found);
            // Its copy may have got its entry in between: then this is the lower's file no more.
            match seen {
                Some((number, None)) if self.has_copy(number) => self.forget(entry.id, 1),
                _ => return Ok(Some(entry)),
            }
        }
        tracing::warn!("the copy of a file with several names cannot be looked at");
        Err(Errno::IO)
    }

    /// The inode that `found` has already, if anyone knows it, referred to while this lives.
    pub(super) fn known(&self, parent: &Inode, name: Name<'_>, found: &Found) -> Option<Known<'_>> {
        let inode = self.inodes.find_known(parent, name.bytes(), found)?;
        Some(Known { union: self, inode })
    }

    /// Takes over the reference that an [`Entry`] stands for.
    pub(super) fn adopt(&self, id: u64) -> Result<Known<'_>> {
        let inode = self.inodes.get(id)?;
        Ok(Known { union: self, inode })
    }

    /// What a name of a directory stands for.
    ///
    /// Precondition: no lock is held.
    pub(super) fn lookup_known(
        &self, parent: &Arc<Inode>, name: Name<'_>,
    ) -> Result<Option<Known<'_>>> {
        let _tree = self.tree.read();
        let _names = dir_of(parent)?.read_names();
        let entry = self.lookup_locked(parent, name)?;
        entry.map(|entry| self.adopt(entry.id)).transpose()
    }

    /// Gives `found` an inode and a reference.
    pub(super) fn intern(&self, parent: &Arc<Inode>, name: Name<'_>, mut found: FoundDir) -> Entry {
        let mut stat = found.found.stat;
        if found.found.ino.is_none() {
            found.found.ino = self.recorded_ino(parent, name, &found.found);
        }
        let handle = found.handle.take();
        let layer = found.found.layer;
        let rechecks = !self.watching.is_sure();
        let stack = found.found.stack.clone().filter(|_| rechecks);
        let inode = self.inodes.intern(parent, name.bytes(), found.found);
        if let (Some(stack), Some(dir)) = (stack, &inode.dir)
            && *dir.stack.read() != stack
        {
            dir.suspect.store(true, Ordering::Release);
        }
        if let Some(handle) = handle {
            self.keep_dir_fd(&inode, layer, handle);
        }
        // What cannot be found fails when it is asked for.
        if shows_holes(&stat) && self.learn(&inode, &stat).is_ok() && inode.is_borrowed() {
            stat.blocks = self.data_blocks(&inode).unwrap_or(stat.blocks);
        }
        self.count_subdirs_below(&inode);
        self.entry(&inode, stat)
    }

    /// The inode number that a copy in the upper keeps, if it is one and is not known yet.
    pub(super) fn recorded_ino(
        &self, parent: &Arc<Inode>, name: Name<'_>, found: &Found,
    ) -> Option<u64> {
        let may_be_copy = parent.dir.as_ref().is_some_and(|dir| dir.has_copies());
        if !self.layers.is_top(found.layer) || !may_be_copy {
            return None;
        }
        if self
            .inodes
            .find(self.inodes.numbers.of(found.stat.dev, found.stat.ino))
            .is_some()
        {
            return None;
        }
        let dir = self.dir_fd(parent, 0).ok()?;
        // A record that cannot be read leaves the copy with the number of its own.
        origin::recorded(dir.as_fd(), name.bytes(), found.stat.ino)
            .ok()
            .flatten()
    }

    /// The entry of an inode whose real object has these attributes.
    ///
    /// Precondition: as for [`Self::links`].
    fn entry(&self, inode: &Arc<Inode>, mut stat: Stat) -> Entry {
        stat.nlink = self.links(inode, &stat);
        Entry {
            id: self.nodes.current(inode),
            generation: inode.serial,
            attr: self.show(inode, stat),
        }
    }

    /// The link count that the union shows for an inode whose real object has `stat`.
    ///
    /// Precondition: of an object that is no directory, as for [`Self::names_of`].
    pub(super) fn links(&self, inode: &Inode, stat: &Stat) -> u64 {
        if inode.is_unlinked() && !self.in_upper(inode) {
            // The lower still has the name that the union has not.
            return if inode.kind.is_dir() || self.plinks.follow() {
                0
            } else {
                stat.nlink.saturating_sub(1)
            };
        }
        if inode.is_unlinked() && !inode.kind.is_dir() {
            // Whatever is left of its links is not the users': one that holds it, or the entry of a
            // pseudo-link that could not be removed yet.
            return 0;
        }
        if matches!(inode.place.read().held(), Some(Held::Link(_))) {
            // The link that holds it is not the users'.
            return stat.nlink.saturating_sub(1);
        }
        match inode.kind.is_dir() {
            false => self.names_of(inode, stat),
            true if inode.is_unlinked() => stat.nlink,
            true => self.dir_links(inode, stat.nlink),
        }
    }

    /// Attributes as the union shows them, with the link count that it shows already.
    pub(super) fn show(&self, inode: &Inode, mut stat: Stat) -> Attr {
        self.owners.show(&mut stat);
        Attr {
            ino: self.shown(inode.ino()),
            keep: match self.nodes.keep(inode) {
                Keep::Not => Keep::Not,
                _ if self.is_in_unwatched(inode) => Keep::Unwatched,
                keep => keep,
            },
            stat,
        }
    }
}

/// An inode with a reference of its own.
#[derive(Debug)]
pub(super) struct Known<'a> {
    union: &'a Union,
    pub inode: Arc<Inode>,
}

impl Known<'_> {
    /// The same with another reference.
    pub fn again(&self) -> Self {
        self.inode.add_refs(1);
        Self {
            union: self.union,
            inode: Arc::clone(&self.inode),
        }
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.union.forget(self.inode.id, 1);
    }
}

/// A name for a message.
pub(super) fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
