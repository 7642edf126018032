//! Finding a name through the layers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::elsewhere::Redirect;
use crate::layer::name::Name;
use crate::layer::opaque;
use crate::layer::origin;
use crate::layer::whiteout::{self, Marker};
use crate::layer::{LayerIndex, LayerStack};
use crate::sys::{self, Errno, Result, Stat};

use super::Union;
use super::inode::{Dir, DirPart, DirStack, Held, Inode};
use super::inode_table::Found;
use super::metacopy::shows_holes;
use super::nlink::PartLinks;
use super::types::{Attr, Entry};

/// How often a name is looked for when each time its file was copied up in between.
const TRIES: usize = 100;

/// What the upper's own directory holds for a name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InUpper {
    /// The object, if there is one.
    pub real: Option<Stat>,
    /// A whiteout stands at the name itself.
    pub whiteout_entry: bool,
    /// A whiteout file stands beside the name.
    pub marker: bool,
}

impl InUpper {
    /// True when the upper hides the name from the lowers without having an object.
    pub fn is_whiteout(&self) -> bool {
        self.real.is_none() && (self.whiteout_entry || self.marker)
    }
}

/// What one layer says about a name.
pub(super) enum Step {
    /// Nothing: look further down.
    Nothing,
    /// A whiteout: the search ends.
    Hidden,
    /// An object that is not a directory: the search ends.
    File(Stat),
    /// A directory, whether it hides what is below, and where else that is.
    Directory {
        stat: Stat,
        handle: OwnedFd,
        part: DirPart,
        last: bool,
        redirect: Option<Redirect>,
    },
}

/// The layers of the union's root, top first, down to the first opaque one.
pub(crate) fn root_stack(layers: &LayerStack) -> Result<DirStack> {
    let mut stack = DirStack::new();
    for (index, layer) in layers.layers.iter().enumerate() {
        let marks = opaque::read(layer.root.as_fd())?;
        if marks.redirect.is_some() {
            tracing::error!(
                "{}: the root of the layer is redirected",
                layer.path.display()
            );
            return Err(Errno::LOOP);
        }
        let index = LayerIndex::try_from(index).map_err(|_| Errno::TOOBIG)?;
        stack.push(DirPart {
            layer: index,
            xattr_whiteouts: marks.xattr_whiteouts,
            copies: marks.copies,
        });
        if marks.opaque && layer.whiteouts {
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
        let _tree = self.tree.read();
        let _names = dir.read_names();
        self.lookup_locked(&parent, name)
    }

    /// [`Self::lookup`] with the tree lock and the parent's names held.
    pub(super) fn lookup_locked(
        &self, parent: &Arc<Inode>, name: Name<'_>,
    ) -> Result<Option<Entry>> {
        if name.is_reserved() {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let Some(found) = self.find(parent, name, 0)? else {
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
        if found.found.plink.is_none() {
            found.found.ino = self.recorded_ino(parent, name, &found.found);
        }
        let handle = found.handle.take();
        let layer = found.found.layer;
        let inode = self.inodes.intern(parent, name.bytes(), found.found);
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
    fn recorded_ino(&self, parent: &Arc<Inode>, name: Name<'_>, found: &Found) -> Option<u64> {
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
    pub(super) fn entry(&self, inode: &Arc<Inode>, stat: Stat) -> Entry {
        Entry {
            id: self.nodes.current(inode),
            generation: inode.serial,
            attr: self.show(inode, stat),
        }
    }

    /// Attributes as the union shows them.
    pub(super) fn show(&self, inode: &Inode, mut stat: Stat) -> Attr {
        if inode.is_unlinked() && !self.in_upper(inode) {
            // The lower still has the name that the union has not.
            stat.nlink = if inode.kind.is_dir() || self.plinks.follow() {
                0
            } else {
                stat.nlink.saturating_sub(1)
            };
        } else if matches!(inode.place.read().held.as_deref(), Some(Held::Link(_))) {
            // The link that holds it is not the users'.
            stat.nlink = stat.nlink.saturating_sub(1);
        } else if !inode.kind.is_dir() {
            stat.nlink = self.names_of(inode, &stat);
        } else if !inode.is_unlinked() {
            stat.nlink = self.dir_links(inode, stat.nlink);
        }
        self.owners.show(&mut stat);
        Attr {
            ino: self.shown(inode.ino()),
            keep: self.nodes.keep(inode),
            stat,
        }
    }

    /// Finds `name` in the layers of `parent` from the one at position `from` of its stack.
    ///
    /// Precondition: the tree lock and the parent's names are held.
    pub(super) fn find(
        &self, parent: &Arc<Inode>, name: Name<'_>, from: LayerIndex,
    ) -> Result<Option<FoundDir>> {
        let mut found: Option<FoundDir> = None;
        let mut links = PartLinks::default();
        for part in parent.stack() {
            if part.layer < from {
                continue;
            }
            let dir = self.dir_fd(parent, part.layer)?;
            match self.step(&dir, name, part)? {
                Step::Nothing => {}
                Step::Hidden => break,
                Step::File(stat) => {
                    // Below a directory, a file ends the merge without being part of it.
                    if found.is_none() {
                        return Ok(Some(FoundDir {
                            found: self.file_found(&dir, name, part.layer, stat),
                            handle: None,
                        }));
                    }
                    break;
                }
                Step::Directory {
                    stat,
                    handle,
                    part,
                    last,
                    redirect,
                } => {
                    links.add(stat.nlink);
                    let top = found.get_or_insert_with(|| FoundDir {
                        found: Found::single(part.layer, stat, None),
                        handle: Some(handle),
                    });
                    top.found.stack.get_or_insert_default().push(part);
                    if let Some(redirect) = redirect {
                        self.follow(parent, top, part.layer, redirect)?;
                        break;
                    }
                    if last {
                        break;
                    }
                }
            }
        }
        if let Some(found) = found.as_mut().map(|found| &mut found.found) {
            found.subdirs = found.stack.as_ref().and_then(|s| links.subdirs(s));
        }
        Ok(found)
    }

    /// A file of a layer, or the copy that stands for it.
    fn file_found(&self, dir: &OwnedFd, name: Name<'_>, layer: LayerIndex, stat: Stat) -> Found {
        if !self.layers.is_top(layer) {
            return match self.copy_of(dir, name.bytes(), &stat) {
                Some((number, copy)) => Found::single(layer, copy, None).with_plink(Some(number)),
                None => Found::single(layer, stat, None),
            };
        }
        let number = (stat.nlink > 1).then(|| self.number_of_copy(stat.dev, stat.ino));
        Found::single(layer, stat, None).with_plink(number.flatten())
    }

    /// What one layer says about a name.
    pub(super) fn step(&self, dir: &OwnedFd, name: Name<'_>, part: DirPart) -> Result<Step> {
        let bytes = name.bytes();
        let whiteouts = self.layers.get(part.layer).whiteouts;
        match whiteout::entry(dir.as_fd(), bytes, part.xattr_whiteouts)? {
            whiteout::Entry::Whiteout if whiteouts => return Ok(Step::Hidden),
            whiteout::Entry::Whiteout => return Ok(Step::File(sys::stat::stat_at(dir, bytes)?)),
            whiteout::Entry::Real(stat) if !stat.kind().is_dir() => {
                let stat = self.owners.recorded(part.layer, dir.as_fd(), bytes, stat)?;
                return Ok(Step::File(stat));
            }
            whiteout::Entry::Real(stat) => {
                let stat = self.owners.recorded(part.layer, dir.as_fd(), bytes, stat)?;
                let same_mount = self.layers.get(part.layer).same_mount;
                let open = || sys::at::open_dir_path(dir, bytes, same_mount);
                let handle = self.with_descriptors(open)?;
                let marks = opaque::read(handle.as_fd())?;
                // A directory beside its own whiteout was made after it: it hides what is below.
                let hides =
                    || Ok(marks.opaque || whiteout::marker(dir.as_fd(), bytes)? != Marker::Nothing);
                let last = whiteouts && hides()?;
                let record = marks.redirect.clone().filter(|_| !last);
                let redirect = self.redirect_of(part.layer, bytes, record)?;
                let part = DirPart {
                    layer: part.layer,
                    xattr_whiteouts: marks.xattr_whiteouts,
                    copies: marks.copies,
                };
                return Ok(Step::Directory {
                    stat,
                    handle,
                    part,
                    last,
                    redirect,
                });
            }
            whiteout::Entry::Nothing if whiteouts => {}
            whiteout::Entry::Nothing => return Ok(Step::Nothing),
        }
        match whiteout::marker(dir.as_fd(), bytes)? {
            Marker::Nothing => Ok(Step::Nothing),
            Marker::Whiteout => Ok(Step::Hidden),
            Marker::Malformed => {
                let layer = self.layers.get(part.layer).path.display();
                tracing::error!(
                    "{layer}: a whiteout is not a regular file: .wh.{}",
                    show(bytes)
                );
                Err(Errno::IO)
            }
        }
    }

    /// True when the subdirectory `name` of a directory with these parts is made of several layers.
    pub(super) fn is_merged(
        &self, parts: &[(DirPart, Arc<OwnedFd>)], name: Name<'_>,
    ) -> Result<bool> {
        let mut directories = 0;
        for (part, dir) in parts {
            match self.step(dir, name, *part)? {
                Step::Nothing => {}
                Step::Hidden | Step::File(_) => break,
                Step::Directory {
                    redirect: Some(_), ..
                } => return Ok(true),
                Step::Directory { last, .. } => {
                    directories += 1;
                    if last {
                        break;
                    }
                }
            }
        }
        Ok(directories > 1)
    }

    /// What the upper's directory holds for `name`; nothing when the directory is not there yet.
    ///
    /// Precondition: as for [`Self::find`].
    pub(super) fn in_upper_dir(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<InUpper> {
        if !self.in_upper(parent) {
            return Ok(InUpper::default());
        }
        let dir = self.dir_fd(parent, 0)?;
        let xattr_whiteouts = parent
            .stack()
            .first()
            .is_some_and(|part| part.xattr_whiteouts);
        let mut result = InUpper::default();
        match whiteout::entry(dir.as_fd(), name.bytes(), xattr_whiteouts)? {
            whiteout::Entry::Nothing => {}
            whiteout::Entry::Whiteout => result.whiteout_entry = true,
            whiteout::Entry::Real(stat) => result.real = Some(stat),
        }
        result.marker = match whiteout::marker(dir.as_fd(), name.bytes())? {
            Marker::Nothing => false,
            Marker::Whiteout => true,
            Marker::Malformed => return Err(Errno::IO),
        };
        Ok(result)
    }

    /// True when a lower shows `name`, so that hiding it needs a whiteout.
    ///
    /// Precondition: as for [`Self::find`].
    pub(super) fn in_lower(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<bool> {
        if parent.stack().iter().all(|part| part.layer == 0) {
            return Ok(false);
        }
        Ok(self.find(parent, name, 1)?.is_some())
    }
}

/// What [`Union::find`] found, with the handle of a directory's top layer.
#[derive(Debug)]
pub(crate) struct FoundDir {
    pub found: Found,
    pub handle: Option<OwnedFd>,
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
        self.inode
            .refs
            .fetch_add(1, std::sync::atomic::Ordering::AcqRel);
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
