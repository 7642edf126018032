//! Files of which the kernel keeps what is written for a while (write-back), and with it their size and
//! times: it sends them when it likes, and does not look at ours.

use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::copy_up::Need;
use super::descriptors::Use;
use super::look_again::Notice;
use super::stale::What;
use super::types::{Attr, Caller, SetAttr, SetTime};

impl Union {
    /// Changes attributes as the kernel asks for that keeps times of files.
    ///
    /// It sends the time of a file's change not only where a user sets one, but after writes, and
    /// after changes that we made ourselves, such as of the number of names. So a time that the file
    /// has is no change, and brings nothing to the upper. And where only the owner may set a time, the
    /// kernel asks for those who may write as well: theirs is then the moment at which they did.
    ///
    /// # Errors
    /// As [`Self::setattr`].
    pub fn setattr_kept(&self, id: u64, set: &SetAttr, caller: Caller) -> Result<Attr> {
        let regular = self.inodes.get(id)?.kind == FileKind::Regular;
        let mtime = match set.mtime {
            Some(SetTime::At(mtime)) if regular => mtime,
            _ => return self.setattr(id, set, caller),
        };
        let by_writing = set.atime.is_none() && set.mode.is_none();
        if !by_writing || set.uid.is_some() || set.gid.is_some() {
            let result = self.setattr(id, set, caller);
            let now = SetAttr {
                mtime: Some(SetTime::Now),
                ..*set
            };
            return match result {
                // touch(1) by someone who may write: the kernel has put its clock in.
                Err(Errno::PERM | Errno::ACCESS) if set.atime == Some(SetTime::Now) => {
                    self.setattr(id, &now, caller)
                }
                result => result,
            };
        }
        let before = match set.size {
            Some(_) => {
                let size = SetAttr {
                    mtime: None,
                    ..*set
                };
                self.setattr(id, &size, caller)?
            }
            None => self.getattr(id)?,
        };
        if before.stat.mtime == mtime {
            return Ok(before);
        }
        let time = SetAttr {
            mtime: set.mtime,
            ..SetAttr::default()
        };
        match self.setattr(id, &time, caller) {
            Err(Errno::PERM | Errno::ACCESS) => Ok(before),
            result => result,
        }
    }

    /// Writes `data` of which nobody said how the file was opened.
    ///
    /// What the kernel writes back begins before what is new: pages are written whole. So of an
    /// append-only file the part that is there already must be the same, and the rest is appended.
    ///
    /// # Errors
    /// As [`Self::write`]; EPERM for changing what an append-only file holds; EAGAIN when what
    /// comes before is missing, which may be under way.
    pub fn write_unopened(
        &self, id: u64, offset: u64, data: &[u8], clear_for: Option<Caller>,
    ) -> Result<usize> {
        let inode = self.inodes.get(id)?;
        self.ensure_upper(&inode, Need::All)?;
        let file = self.file(&inode, true)?;
        if !sys::fd::is_append(&*file)? {
            return self.write_open(&inode, &file, offset, data, clear_for);
        }
        let _order = self.not_while_copying(&inode);
        let size = sys::stat::fstat(&*file)?.size;
        if offset > size {
            return Err(Errno::AGAIN);
        }
        let there = usize::try_from(size - offset).map_or(data.len(), |n| n.min(data.len()));
        let mut old = vec![0; there];
        if sys::file::read_full(&*file, &mut old, offset)? < there || old != data[..there] {
            return Err(Errno::PERM);
        }
        let new = &data[there..];
        Ok(there + self.write_open(&inode, &file, size, new, clear_for)?)
    }

    /// True when the filesystem of the upper may tell at close(2) what went wrong with a write.
    pub fn tells_at_close(&self) -> bool {
        let top = self.layers.top();
        !self.is_read_only() && top.is_some_and(|top| sys::stat::tells_at_close(&*top.root()))
    }

    /// What close(2) would tell somebody who has written to a file.
    ///
    /// # Errors
    /// Of the writes.
    pub fn flush(&self, id: u64) -> Result<()> {
        let inode = self.inodes.get(id)?;
        match self.descriptors.file((inode.serial, 0, Use::Write)) {
            Some(file) if self.in_upper(&inode) => sys::fd::close_a_copy(&*file),
            _ => Ok(()),
        }
    }

    /// Has the kernel write back what it keeps of a file, and waits for it.
    ///
    /// Must not be called on a thread that the answers depend on.
    pub fn write_back(&self, id: u64) {
        self.stale.tell(id, What::Contents);
    }

    /// What has the kernel ask for the names of a node again.
    pub(crate) fn shown_names(&self, id: u64) -> Vec<Notice> {
        let aliases = self
            .inodes
            .get(id)
            .map_or_else(|_| Vec::new(), |inode| inode.aliases());
        let names = aliases.into_iter();
        names
            .map(|alias| Notice::Name(alias.parent.id, alias.name))
            .collect()
    }
}
