//! Attributes: reading and changing them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::descriptors::{Real, Use};
use super::inode::Inode;
use super::metacopy::shows_holes;
use super::stale::What;
use super::types::{Attr, Caller, SetAttr, SetTime, StatFs};

impl Union {
    /// Attributes of a node.
    ///
    /// # Errors
    /// What stat(2) of the real object gives.
    pub fn getattr(&self, id: u64) -> Result<Attr> {
        let inode = self.inodes.get(id)?;
        self.attr_of(&inode)
    }

    /// Attributes of an inode.
    pub(super) fn attr_of(&self, inode: &Arc<Inode>) -> Result<Attr> {
        let is_dir = inode.kind.is_dir();
        let mut stat = self.with_real(inode, |real| {
            let mut stat = self.stat_of(real)?;
            if !is_dir {
                // Here, as entries of files with several names go with the tree lock written.
                stat.nlink = self.links(inode, &stat);
            }
            Ok(stat)
        })?;
        if stat.kind() != inode.kind {
            tracing::error!("an object of a layer was replaced behind the union's back");
            return Err(Errno::STALE);
        }
        if shows_holes(&stat) {
            self.learn_borrowed(inode)?;
            if inode.is_borrowed() {
                stat.blocks = self.data_blocks(inode)?;
            }
        }
        if is_dir {
            if let Some(dir) = inode.dir.as_ref().filter(|_| self.rechecks(inode)) {
                dir.subdirs.forget();
            }
            self.count_subdirs(inode);
            stat.nlink = self.links(inode, &stat);
        }
        Ok(self.show(inode, stat))
    }

    /// Changes attributes; the object is copied up first.
    ///
    /// # Errors
    /// EROFS without an upper, and what the calls on the upper give.
    pub fn setattr(&self, id: u64, set: &SetAttr, caller: Caller) -> Result<Attr> {
        let inode = self.inodes.get(id)?;
        let set = &self.owners.to_disk(set)?;
        // Only what remains of the data is worth copying.
        let need = set.size.map_or(Need::Attributes, Need::Bytes);
        self.ensure_upper(&inode, need)?;
        if let Some(size) = set.size {
            self.truncate(&inode, size, caller)?;
        }
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || has_times(set) {
            self.set_on_inode(&inode, set, caller)?;
        }
        self.attr_of(&inode)
    }

    fn set_on_inode(&self, inode: &Arc<Inode>, set: &SetAttr, caller: Caller) -> Result<()> {
        if let Some(dir) = &inode.dir {
            // A copy-up below sets the directory's times back to what it found; not in between.
            let _tree = self.tree.read();
            let _names = dir.read_names();
            return self.set_on(&self.real(inode)?, set);
        }
        let _held = self.not_while_copying(inode);
        let before = match set.uid.or(set.gid) {
            Some(_) if caller.uid != 0 => Some(self.with_real(inode, |real| self.stat_of(real))?),
            _ => None,
        };
        let done = self.with_real(inode, |real| {
            self.set_on(real, set)?;
            // chown clears set-id bits by itself, but for the caller's rights it takes ours.
            let keeps =
                |s: &Stat| s.mode & libc::S_ISGID != 0 && !self.owners.is_in_group(caller, s.gid);
            if set.mode.is_none() && before.as_ref().is_some_and(keeps) {
                let mode = self.stat_of(real)?.mode;
                self.change_mode(real, mode & !libc::S_ISGID)?;
            }
            Ok(())
        });
        if set.mode.is_some()
            && let Some(file) = self.descriptors.file((inode.serial, 0, Use::Write))
        {
            self.keep_for_next(inode, &file);
        }
        done
    }

    /// Changes owner, mode and times of a real object.
    fn set_on(&self, real: &Real, set: &SetAttr) -> Result<()> {
        // The owner first: changing it clears the set-id bits that the mode may set.
        if set.uid.is_some() || set.gid.is_some() {
            self.change_owner(real, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            self.change_mode(real, mode)?;
        }
        if has_times(set) {
            let atime = set.atime.unwrap_or(SetTime::Omit);
            let mtime = set.mtime.unwrap_or(SetTime::Omit);
            sys::at::utimens_at(real.fd(), &real.name, atime, mtime)?;
        }
        Ok(())
    }

    /// Sets the size of a file of the upper, as a write by `caller`.
    pub(super) fn truncate(&self, inode: &Arc<Inode>, size: u64, caller: Caller) -> Result<()> {
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        self.own_data(inode, Need::Bytes(size))?;
        let file = self.file(inode, true)?;
        match sys::file::truncate(&*file, size) {
            // A copy-up for this has brought no more than that, and cannot be taken back; the time of the change
            // is what may be missing.
            Err(_) if sys::stat::fstat(&*file).is_ok_and(|now| now.size == size) => {
                let _ = sys::at::utimens_at(&*file, b"", SetTime::Omit, SetTime::Now);
            }
            result => result?,
        }
        self.data_change(inode)?;
        if caller.uid != 0 {
            self.clear_set_ids(inode, &file, caller)?;
        }
        Ok(())
    }

    /// Clears the set-user-id bit, and the set-group-id bit of a file that its group may execute or
    /// that is not of the caller's groups, after a write by someone without CAP_FSETID. The kernel
    /// asks us to where it knows of the write; capabilities are cleared by the backing filesystem
    /// itself.
    pub(super) fn clear_set_ids(
        &self, inode: &Arc<Inode>, file: &impl std::os::fd::AsFd, caller: Caller,
    ) -> Result<()> {
        let stat = self.stat_open(inode, file)?;
        let mut mode = stat.mode & 0o7777;
        mode &= !libc::S_ISUID;
        let runs = mode & libc::S_IXGRP != 0;
        if mode & libc::S_ISGID != 0 && (runs || !self.owners.is_in_group(caller, stat.gid)) {
            mode &= !libc::S_ISGID;
        }
        if mode == stat.mode & 0o7777 {
            return Ok(());
        }
        self.with_real(inode, |real| self.change_mode(real, mode))?;
        // The kernel expects times and size to change by a write, and would go on running the file
        // with the rights it had.
        self.stale.tell(inode.id, What::Attributes);
        Ok(())
    }

    /// Figures of the filesystem that takes the changes, or of the top layer without one.
    ///
    /// # Errors
    /// What statfs(2) gives.
    pub fn statfs(&self) -> Result<StatFs> {
        let top = self.layers.top().ok_or(Errno::IO)?;
        let mut sum = statfs_of(&top.root())?;
        if self.sum_statfs {
            let mut counted = vec![top.dev];
            for (_, layer) in self.layers.all().into_iter().skip(1) {
                if !counted.contains(&layer.dev) {
                    counted.push(layer.dev);
                    sum.add(&statfs_of(&layer.root())?);
                }
            }
        }
        Ok(sum)
    }
}

#[allow(clippy::cast_possible_truncation)] // block sizes and name lengths are small
fn statfs_of(root: &OwnedFd) -> Result<StatFs> {
    let s = sys::stat::statvfs(root)?;
    Ok(StatFs {
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        bsize: s.f_bsize as u32,
        namelen: s.f_namemax.min(crate::layer::name::NAME_MAX as u64) as u32,
        frsize: s.f_frsize as u32,
    })
}

fn has_times(set: &SetAttr) -> bool {
    set.atime.is_some() || set.mtime.is_some()
}
