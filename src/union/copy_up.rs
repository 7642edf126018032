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
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::descriptors::Use;
use super::inode::{DirPart, Held, Inode};
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

/// A complete copy without a name.
pub(super) enum Copy {
    /// An unnamed file.
    Unnamed(OwnedFd),
    /// A named temporary, and the open file of a regular one.
    Named(Temp, Option<OwnedFd>),
}

impl Copy {
    /// Writes down the number under which users know the object, so that it keeps it.
    /// Returns whether it could be.
    pub fn record_ino(&self, ino: u64, real: &Stat) -> Result<bool> {
        let (dir, name) = self.real();
        origin::record(dir, name, ino, real.ino)
    }

    /// True when the data were left where they are.
    fn leaves_data(&self) -> bool {
        match self {
            Self::Unnamed(file) | Self::Named(_, Some(file)) => elsewhere::is_metacopy(file),
            Self::Named(_, None) => false,
        }
    }

    pub fn real(&self) -> (BorrowedFd<'_>, &[u8]) {
        match self {
            Self::Unnamed(file) => (file.as_fd(), b""),
            Self::Named(temp, _) => (temp.dir(), temp.name()),
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
        self.publish(inode, copy)?;
        self.tell_data_moved(inode, from, Use::Read);
        self.drop_lower_file(inode, from);
        tracing::debug!(inode = inode.ino(), from, "copied up");
        Ok(())
    }

    fn copy_file(&self, inode: &Arc<Inode>, need: Need) -> Result<Copy> {
        let upper = self.upper()?;
        let (file, temp) = self.with_descriptors(|| upper.temp_file())?;
        self.fill_copy(inode, need, &file, true)?;
        Ok(match temp {
            None => Copy::Unnamed(file),
            Some(temp) => Copy::Named(temp, Some(file)),
        })
    }

    /// Makes the empty `file` a copy of a file, flushed if it is to be.
    pub(super) fn fill_copy(
        &self, inode: &Arc<Inode>, need: Need, file: &OwnedFd, flush: bool,
    ) -> Result<()> {
        let from = inode.layer();
        let src = self.file(inode, false)?;
        let data = sys::stat::fstat(&*src)?;
        let stat = if inode.is_borrowed() {
            self.with_real(inode, |real| self.stat_of(real))?
        } else {
            self.owners.recorded(from, src.as_fd(), b"", data)?
        };
        let leave = self.leaves_data(need, &src, &stat)?;
        let len = match need {
            Need::All | Need::Attributes => stat.size,
            Need::Bytes(n) => n.min(stat.size),
        };
        if leave {
            sys::file::truncate(file, len)?;
        } else {
            sys::copy::copy_data(&*src, file, data.size, len)?;
        }
        let to = (file.as_fd(), &b""[..]);
        if inode.is_borrowed() {
            self.with_real(inode, |real| {
                self.copy_attributes(from, (real.fd(), &real.name), to, &stat)
            })?;
        } else {
            self.copy_attributes(from, (src.as_fd(), b""), to, &stat)?;
        }
        if leave {
            elsewhere::set_metacopy(file.as_fd(), b"")?;
        }
        if len > 0 && flush && !self.volatile {
            // Before the name: a power cut must not leave the name with less than the data.
            sys::file::sync(file, false)?;
        }
        Ok(())
    }

    fn copy_dir(&self, inode: &Arc<Inode>) -> Result<Copy> {
        let upper = self.upper()?;
        let _tree = self.tree.read();
        let from = inode.layer();
        let src = self.dir_fd(inode, from)?;
        let stat = sys::stat::fstat(&*src)?;
        let stat = self.owners.recorded(from, src.as_fd(), b"", stat)?;
        let temp = upper.temp(|dir, name| sys::at::mkdir_at(dir, name, 0o700))?;
        self.copy_attributes(from, (src.as_fd(), b""), (temp.dir(), temp.name()), &stat)?;
        Ok(Copy::Named(temp, None))
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
        let (from, to) = ((src.fd(), &*src.name), (temp.dir(), temp.name()));
        self.copy_attributes(src.layer, from, to, &stat)?;
        Ok(Copy::Named(temp, None))
    }

    /// Gives the copy the owner, extended attributes, mode and times of its source in layer `from`,
    /// whose attributes are `stat`. The owner first, as changing it clears set-id bits and
    /// capabilities; the times last.
    pub(super) fn copy_attributes(
        &self, from: LayerIndex, src: Named<'_>, dst: Named<'_>, stat: &Stat,
    ) -> Result<()> {
        self.owners.give(dst.0, dst.1, stat)?;
        self.copy_xattrs(from, src, dst)?;
        self.owners.give_mode(dst.0, dst.1, stat)?;
        let (atime, mtime) = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
        sys::at::utimens_at(dst.0, dst.1, atime, mtime)
    }

    fn copy_xattrs(&self, from: LayerIndex, src: Named<'_>, dst: Named<'_>) -> Result<()> {
        let names = sys::xattr::list(src.0, src.1)?;
        drop_inherited_acls(&names, dst.0, dst.1)?;
        for stored in names.split(|&b| b == 0).filter(|a| !a.is_empty()) {
            let Some(attr) = self.owners.users_name(from, stored) else {
                continue;
            };
            let Some(value) = sys::xattr::get(src.0, src.1, stored)? else {
                continue;
            };
            let name = self.owners.stored_name(0, attr)?;
            match sys::xattr::set(dst.0, dst.1, &name, &value, 0) {
                Ok(()) => {}
                // As in overlayfs: what the upper's filesystem cannot hold is left out, except what
                // protects the file.
                Err(Errno::OPNOTSUPP) if !protects(attr) => {}
                // Labels that only the system's own policy may set.
                Err(Errno::PERM | Errno::OPNOTSUPP) if is_label(attr) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives the copy the inode's name, or keeps it without one if the name is gone.
    fn publish(&self, inode: &Arc<Inode>, copy: Copy) -> Result<()> {
        let (dir, name) = copy.real();
        let stat = sys::stat::stat_at(dir, name)?;
        let is_kept = inode.by_name || copy.record_ino(inode.ino(), &stat)?;
        if !inode.kind.is_dir() && self.plinks.follow() {
            let record = self.lower_record(inode)?;
            // A copy that cannot carry its number has it in the name of its entry.
            let is_linked = record.links > 1 || self.plinks.group(inode.ino()).is_some();
            if is_linked || !is_kept {
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
        let leaves = copy.leaves_data();
        let before = sys::stat::fstat(&*parent)?;
        let file = give_name(copy, parent.as_fd(), &alias.name)?;
        // The directory's entries are the same as before for its users, so are its times.
        restore_times(parent.as_fd(), &before);
        let key = self.inodes.numbers.of(stat.dev, stat.ino);
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
        let leaves = copy.leaves_data();
        if let Some(alias) = inode.alias_or_last() {
            self.settle_data(inode, leaves, &alias);
        }
        let held = match copy {
            Copy::Unnamed(file) => file,
            Copy::Named(temp, Some(file)) => {
                drop(temp);
                file
            }
            Copy::Named(temp, None) => {
                self.with_descriptors(|| sys::at::open_path(temp.dir(), temp.name()))?
            }
        };
        if let Some(dir) = &inode.dir {
            let part = DirPart::new_upper();
            dir.stack.write().insert(0, part);
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
    match copy {
        Copy::Unnamed(file) => {
            sys::at::link_fd(&file, parent, name)?;
            Ok(Some(file))
        }
        Copy::Named(temp, file) => {
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
/// (with the attributes `wanted`) has not.
fn drop_inherited_acls(wanted: &[u8], dst: BorrowedFd<'_>, dst_name: &[u8]) -> Result<()> {
    let inherited = sys::xattr::list(dst, dst_name)?;
    for attr in inherited
        .split(|&b| b == 0)
        .filter(|a| a.starts_with(ACL_PREFIX))
    {
        if !wanted.split(|&b| b == 0).any(|w| w == attr) {
            sys::xattr::remove(dst, dst_name, attr)?;
        }
    }
    Ok(())
}

/// True for attributes that decide who may do what with the file.
fn protects(attr: &[u8]) -> bool {
    attr.starts_with(ACL_PREFIX) || attr.starts_with(b"security.")
}

fn is_label(attr: &[u8]) -> bool {
    attr.starts_with(b"security.") && attr != b"security.capability"
}
