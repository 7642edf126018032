//! Copy-up: bringing an object of a lower into the upper.
//!
//! The copy is made complete without a name (data, owner, attributes, mode, times, in the order in
//! which none undoes another) and then published in one step, so a crash leaves the lower's object
//! or the whole copy. While data move only the inode's own [`copying`](super::inode::Inode::copying)
//! lock is held. Losing a race against another copy-up of the same inode is success.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::upper::Temp;
use crate::layer::{LayerIndex, elsewhere, origin};
use crate::sys::at::SetTime;
use crate::sys::copy::Copied;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::descriptors::Use;
use super::inode::{DirPart, Held, Inode};
use super::journal;
use super::lookup::dir_of;
use super::rank::{Rank, Ranked};

/// Both POSIX ACLs of an object.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// How much of the data the operation behind a copy-up leaves in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Need {
    /// All of it.
    All,
    /// None: it changes attributes. The data may stay where they are.
    Attributes,
    /// At most the first so many bytes; the file is then truncated.
    Bytes(u64),
}

/// An object: a name in a directory, or with an empty name the descriptor's own.
type Named<'a> = (BorrowedFd<'a>, &'a [u8]);

/// The same in a layer.
type Source<'a> = (LayerIndex, BorrowedFd<'a>, &'a [u8]);

/// A complete copy without a name.
pub(super) struct Copy {
    body: Body,
    /// What it is on disk.
    pub made: Stat,
    /// Links that its source has.
    links: u64,
    /// The data were left where they are.
    leaves_data: bool,
    /// Where its data come from.
    source: Option<Arc<OwnedFd>>,
}

/// The object itself.
enum Body {
    /// An unnamed file.
    Unnamed(OwnedFd),
    /// A named temporary, and the open file of a regular one.
    Named(Temp, Option<OwnedFd>),
}

/// What was copied into a file.
pub(super) struct Filled {
    pub file: OwnedFd,
    /// The new file as it was made.
    pub made: Stat,
    /// Links that its source has.
    links: u64,
    /// The data were left where they are.
    leaves_data: bool,
    /// What became of the data else.
    pub copied: Copied,
    /// Where they come from.
    source: Arc<OwnedFd>,
}

impl Copy {
    /// A named temporary that is no regular file.
    fn named(temp: Temp, links: u64) -> Result<Self> {
        Ok(Self {
            made: sys::stat::stat_at(temp.dir(), temp.name())?,
            body: Body::Named(temp, None),
            links,
            leaves_data: false,
            source: None,
        })
    }

    /// Writes down the number under which users know the object, so that it keeps it.
    /// Returns whether it could be.
    pub fn record_ino(&self, ino: u64) -> Result<bool> {
        let (dir, name) = self.real();
        origin::record(dir, name, ino, self.made.ino)
    }

    /// The object: its open file where there is one, else its temporary name.
    pub fn real(&self) -> (BorrowedFd<'_>, &[u8]) {
        match &self.body {
            Body::Unnamed(file) | Body::Named(_, Some(file)) => (file.as_fd(), b""),
            Body::Named(temp, None) => (temp.dir(), temp.name()),
        }
    }
}

impl Union {
    /// Sees to it that the inode's real object is in the upper.
    ///
    /// Precondition: no lock is held.
    ///
    /// # Errors
    /// EROFS without an upper; otherwise what making the copy gives, and nothing has changed then.
    pub(super) fn ensure_upper(&self, inode: &Arc<Inode>, need: Need) -> Result<()> {
        self.upper()?;
        if self.in_upper(inode) {
            return Ok(());
        }
        if !inode.is_unlinked() {
            // From the topmost missing ancestor down, without recursion.
            let mut missing = Vec::new();
            let mut next = inode.alias().map(|a| a.parent);
            while let Some(dir) = next {
                if self.in_upper(&dir) {
                    break;
                }
                next = dir.alias().map(|a| a.parent);
                missing.push(dir);
            }
            while let Some(dir) = missing.pop() {
                self.copy_up(&dir, Need::All)?;
            }
        }
        self.copy_up(inode, need)?;
        if inode.is_plinked() {
            self.put_names(inode);
        }
        Ok(())
    }

    pub(super) fn copy_up(&self, inode: &Arc<Inode>, need: Need) -> Result<()> {
        let _rank = Ranked::enter(Rank::Copying);
        let _copying = inode.copying.lock();
        if self.in_upper(inode) {
            return Ok(());
        }
        let from = inode.layer();
        sys::cred::enter_own();
        let copy = match inode.kind {
            FileKind::Regular => self.copy_file(inode, need)?,
            FileKind::Directory => self.copy_dir(inode)?,
            _ => self.copy_node(inode)?,
        };
        // It may have been let go meanwhile, and who reads it needs it on.
        let source = copy.source.clone();
        self.publish(inode, copy)?;
        self.tell_data_moved(inode, (from, Use::Read), source.as_ref());
        self.drop_lower_file(inode, from);
        self.counted.copy_up();
        tracing::debug!(inode = inode.ino(), from, "copied up");
        Ok(())
    }

    fn copy_file(&self, inode: &Arc<Inode>, need: Need) -> Result<Copy> {
        let upper = self.upper()?;
        let mut temp = None;
        let filled = self.fill_copy(inode, need, !self.volatile, |mode| {
            let (file, named) = self.with_descriptors(|| upper.temp_file(mode))?;
            temp = named;
            Ok(file)
        })?;
        if !self.volatile {
            // Before the name: a power cut must not leave the name with less than the data.
            upper.order.settle(&filled.file, filled.copied)?;
        }
        Ok(Copy {
            body: match temp {
                Some(temp) => Body::Named(temp, Some(filled.file)),
                None => Body::Unnamed(filled.file),
            },
            made: filled.made,
            links: filled.links,
            leaves_data: filled.leaves_data,
            source: Some(filled.source),
        })
    }

    /// Makes a copy of a file in the empty one that `make` gives for a mode. If it `is_flushed` by itself
    /// afterwards, the disk begins with that while the attributes are copied.
    pub(super) fn fill_copy(
        &self, inode: &Arc<Inode>, need: Need, is_flushed: bool,
        make: impl FnOnce(u32) -> Result<OwnedFd>,
    ) -> Result<Filled> {
        let from = inode.layer();
        let src = self.file(inode, false)?;
        let data = sys::stat::fstat(&*src)?;
        let stat = if inode.is_borrowed() {
            self.with_real(inode, |real| self.stat_of(real))?
        } else {
            self.owners.recorded(from, src.as_fd(), b"", data)?
        };
        let leaves_data = self.leaves_data(need, &src, &stat)?;
        let len = match need {
            Need::All | Need::Attributes => stat.size,
            Need::Bytes(n) => n.min(stat.size),
        };
        let file = make(self.owners.first_mode(&stat))?;
        let made = sys::stat::fstat(&file)?;
        let copied = if leaves_data {
            sys::file::truncate(&file, len)?;
            if len == 0 {
                Copied::Empty
            } else {
                Copied::Nothing
            }
        } else {
            let refusals = &self.upper()?.refusals;
            let copied = sys::copy::copy_data(&*src, &data, &file, len, refusals)?;
            self.counted.copied(len);
            if is_flushed && copied == Copied::Written {
                sys::file::begin_write_out(&file)?;
            }
            copied
        };
        if inode.is_borrowed() {
            self.with_real(inode, |real| {
                let from = (from, real.fd(), &*real.name);
                self.copy_attributes(from, (file.as_fd(), b""), &stat, Some(&made))
            })?;
        } else {
            let from = (from, src.as_fd(), &b""[..]);
            self.copy_attributes(from, (file.as_fd(), b""), &stat, Some(&made))?;
        }
        if leaves_data {
            elsewhere::set_metacopy(file.as_fd(), b"")?;
        }
        if len < stat.size {
            // A copy of less is the change itself, and nobody is to see it without its time.
            sys::at::utimens_at(&file, b"", SetTime::At(stat.atime), SetTime::Now)?;
        }
        Ok(Filled {
            file,
            made,
            links: stat.nlink,
            leaves_data,
            copied,
            source: src,
        })
    }

    fn copy_dir(&self, inode: &Arc<Inode>) -> Result<Copy> {
        let upper = self.upper()?;
        let _tree = self.tree.read();
        let from = inode.layer();
        let src = self.dir_fd(inode, from)?;
        let stat = sys::stat::fstat(&*src)?;
        let stat = self.owners.recorded(from, src.as_fd(), b"", stat)?;
        let temp = upper.temp(|dir, name| sys::at::mkdir_at(dir, name, 0o700))?;
        let from = (from, src.as_fd(), &b""[..]);
        self.copy_attributes(from, (temp.dir(), temp.name()), &stat, None)?;
        Copy::named(temp, 1)
    }

    /// The copy of an object that is neither a file nor a directory.
    pub(super) fn copy_node(&self, inode: &Arc<Inode>) -> Result<Copy> {
        let upper = self.upper()?;
        let _tree = self.tree.read();
        let src = self.real(inode)?;
        let stat = self.stat_of(&src)?;
        let temp = if inode.kind == FileKind::Symlink {
            let target = sys::at::readlink_at(src.fd(), &src.name)?;
            upper.temp(|dir, name| sys::at::symlink_at(&target, dir, name))?
        } else {
            let (kind, rdev) = if self.owners.keeps_records() {
                (libc::S_IFREG, 0)
            } else {
                (stat.mode & libc::S_IFMT, stat.rdev)
            };
            upper.temp(|dir, name| sys::at::mknod_at(dir, name, kind, rdev))?
        };
        let from = (src.layer, src.fd(), &*src.name);
        self.copy_attributes(from, (temp.dir(), temp.name()), &stat, None)?;
        Copy::named(temp, stat.nlink)
    }

    /// Gives the copy the owner, extended attributes, mode and times of its source, whose attributes
    /// are `stat`. The owner first, as changing it clears set-id bits and capabilities; the times
    /// last. What it was `made` with, if that is known, is not given again.
    pub(super) fn copy_attributes(
        &self, src: Source<'_>, dst: Named<'_>, stat: &Stat, made: Option<&Stat>,
    ) -> Result<()> {
        self.owners.give(dst.0, dst.1, stat, made)?;
        let touched = self.copy_xattrs(src, dst)?;
        let is_right = |made: &Stat| (made.mode ^ stat.mode) & 0o7777 == 0;
        if touched || self.owners.keeps_records() || !made.is_some_and(is_right) {
            self.owners.give_mode(dst.0, dst.1, stat)?;
        }
        let (atime, mtime) = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
        sys::at::utimens_at(dst.0, dst.1, atime, mtime)
    }

    /// Returns whether it changed anything.
    fn copy_xattrs(&self, (from, dir, name): Source<'_>, dst: Named<'_>) -> Result<bool> {
        let names = sys::xattr::list(dir, name)?;
        let mut touched = drop_inherited_acls(&names, dst.0, dst.1)?;
        for stored in names.split(|&b| b == 0).filter(|a| !a.is_empty()) {
            let Some(attr) = self.owners.users_name(from, stored) else {
                continue;
            };
            let Some(value) = sys::xattr::get(dir, name, stored)? else {
                continue;
            };
            let stored = self.owners.stored_name(0, attr)?;
            match sys::xattr::set(dst.0, dst.1, &stored, &value, 0) {
                Ok(()) => touched = true,
                // As in overlayfs: what the upper's filesystem cannot hold is left out, except what
                // protects the file.
                Err(Errno::OPNOTSUPP) if !protects(attr) => {}
                // Labels that only the system's own policy may set.
                Err(Errno::PERM | Errno::OPNOTSUPP) if is_label(attr) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(touched)
    }

    /// Gives the copy the inode's name, or keeps it without one if the name is gone.
    fn publish(&self, inode: &Arc<Inode>, copy: Copy) -> Result<()> {
        if inode.is_pinned() {
            // It has left the tree with its layer.
            let _tree = self.tree.read();
            return self.adopt_orphan(inode, copy);
        }
        let is_kept = inode.by_name || copy.record_ino(inode.ino())?;
        if !inode.kind.is_dir() && self.plinks.follow() {
            // A copy that cannot carry its number has it in the name of its entry.
            let is_linked = copy.links > 1 || self.plinks.group(inode.ino()).is_some();
            if is_linked || !is_kept {
                let record = self.lower_record(inode)?;
                return self.publish_plink(inode, copy, record);
            }
        }
        let _tree = self.tree.read();
        let Some(alias) = inode.alias() else {
            return self.adopt_orphan(inode, copy);
        };
        let parent = self.dir_fd(&alias.parent, 0)?;
        let names = dir_of(&alias.parent)?.write_names();
        if self.in_upper(inode) {
            // The rename of a directory above brought it there.
            return Ok(());
        }
        // An object of a lower keeps its name until it loses it.
        if inode.is_unlinked() {
            return self.adopt_orphan(inode, copy);
        }
        // All that may fail comes before the name.
        if !inode.by_name {
            self.mark_copies(&alias.parent, parent.as_fd())?;
        }
        if inode.kind.is_dir() {
            self.keep_subdirs(inode)?;
        }
        let (leaves, made) = (copy.leaves_data, copy.made);
        let before = sys::stat::fstat(&*parent)?;
        let file = give_name(copy, parent.as_fd(), &alias.name)?;
        // The directory's entries are the same as before for its users, so are its times.
        restore_times(parent.as_fd(), &before);
        let key = self.inodes.numbers.of(made.dev, made.ino);
        if let Some(dir) = &inode.dir {
            let part = DirPart::new_upper();
            dir.stack.write().insert(0, part);
        }
        self.inodes.rekey(inode, key, inode.by_name);
        self.settle_data(inode, leaves, &alias);
        inode.set_copied_up();
        if is_kept && !inode.by_name {
            names.note_copied_up(&alias.name);
        }
        if let Some(file) = file.filter(|_| !leaves) {
            self.keep_file(inode, file);
        }
        Ok(())
    }

    /// Marks a directory of the upper, with handle `fd`, as one that may hold copies.
    ///
    /// Precondition: its names are locked, or the tree lock is written.
    pub(super) fn mark_copies(&self, inode: &Inode, fd: BorrowedFd<'_>) -> Result<()> {
        let dir = dir_of(inode)?;
        if dir.has_copies() {
            return Ok(());
        }
        origin::mark(fd)?;
        if let Some(part) = dir.stack.write().first_mut() {
            part.copies = true;
        }
        Ok(())
    }

    /// Keeps a copy that has no name any more by its descriptor alone; nothing stays on disk once
    /// the inode is forgotten.
    pub(super) fn adopt_orphan(&self, inode: &Arc<Inode>, copy: Copy) -> Result<()> {
        if let Some(alias) = inode.alias_or_last() {
            self.settle_data(inode, copy.leaves_data, &alias);
        }
        let held = match copy.body {
            Body::Unnamed(file) | Body::Named(_, Some(file)) => file,
            Body::Named(temp, None) => {
                self.with_descriptors(|| sys::at::open_path(temp.dir(), temp.name()))?
            }
        };
        if let Some(dir) = &inode.dir {
            let part = DirPart::new_upper();
            dir.stack.write().insert(0, part);
        }
        if let Some(journal) = journal::active() {
            journal.hold(inode.cell, inode.serial, held.as_fd());
        }
        let held = Held::Handle {
            fd: Arc::new(held),
            _permit: self.descriptors.held.take(),
        };
        inode.place.write().set_held(Some(held));
        self.inodes.retire(inode);
        inode.set_copied_up();
        Ok(())
    }
}

/// Publishes the copy; returns the open file of a regular one.
pub(super) fn give_name(
    copy: Copy, parent: BorrowedFd<'_>, name: &[u8],
) -> Result<Option<OwnedFd>> {
    match copy.body {
        Body::Unnamed(file) => {
            sys::at::link_fd(&file, parent, name)?;
            Ok(Some(file))
        }
        Body::Named(temp, file) => {
            publish_new(temp, parent, name)?;
            Ok(file)
        }
    }
}

/// Publishes a temporary under a name that is free.
pub(super) fn publish_new(temp: Temp, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match sys::stat::stat_at(parent, name) {
        Err(Errno::NOENT) => temp.publish(parent, name, RenameFlags::empty()),
        Ok(_) => Err(Errno::EXIST),
        Err(e) => Err(e),
    }
}

/// Sets a directory's times back to what they were.
pub(super) fn restore_times(dir: BorrowedFd<'_>, before: &Stat) {
    let (atime, mtime) = (SetTime::At(before.atime), SetTime::At(before.mtime));
    if let Err(e) = sys::at::utimens_at(dir, b"", atime, mtime) {
        // The copy-up itself is done and right.
        tracing::warn!("the times of a directory could not be kept at copy-up: {e}");
    }
}

/// Removes the ACLs that the copy inherited from the place where it was made, and that its source
/// (with the attributes `wanted`) has not. Returns whether there were any.
fn drop_inherited_acls(wanted: &[u8], dst: BorrowedFd<'_>, dst_name: &[u8]) -> Result<bool> {
    let mut dropped = false;
    let inherited = sys::xattr::list(dst, dst_name)?;
    for attr in inherited
        .split(|&b| b == 0)
        .filter(|a| a.starts_with(ACL_PREFIX))
    {
        if !wanted.split(|&b| b == 0).any(|w| w == attr) {
            sys::xattr::remove(dst, dst_name, attr)?;
            dropped = true;
        }
    }
    Ok(dropped)
}

/// True for attributes that decide who may do what with the file.
fn protects(attr: &[u8]) -> bool {
    attr.starts_with(ACL_PREFIX) || attr.starts_with(b"security.")
}

fn is_label(attr: &[u8]) -> bool {
    attr.starts_with(b"security.") && attr != b"security.capability"
}
