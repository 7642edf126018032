//! Opening, reading and writing files.
//!
//! Nothing here depends on knowing what is open: a file is found through its inode at every call,
//! so all descriptors of a file see the upper as soon as it was copied up.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::copy_up::Need;
use super::inode::Inode;
use super::stale::What;
use super::types::{Caller, OpenMode};

impl Union {
    /// Makes a file ready to be read or written as `mode` says; for writing it is copied up,
    /// without its data when it is truncated.
    ///
    /// # Errors
    /// EROFS for writing without an upper, EISDIR, and what open(2) of the real file gives.
    pub fn open(&self, id: u64, mode: OpenMode, caller: Caller) -> Result<()> {
        let inode = self.inodes.get(id)?;
        self.regular(&inode)?;
        if !mode.write && !mode.truncate {
            return self.file(&inode, false).map(|_| ());
        }
        let need = if mode.truncate {
            Need::Bytes(0)
        } else {
            Need::All
        };
        self.ensure_upper(&inode, need)?;
        if mode.truncate {
            // After a copy-up of nothing too: truncating sets the times and clears set-id bits.
            return self.truncate(&inode, 0, caller);
        }
        let file = self.file(&inode, true)?;
        // An append-only file can be opened by us only so; then the caller must have asked so.
        if !mode.append && sys::fd::is_append(&*file)? {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    pub(super) fn regular(&self, inode: &Inode) -> Result<()> {
        match inode.kind {
            FileKind::Regular => Ok(()),
            FileKind::Directory => Err(Errno::ISDIR),
            // The kernel opens fifos, sockets and devices itself.
            _ => Err(Errno::NXIO),
        }
    }

    /// Reads into `buf`; less than its length only at the end of the file.
    ///
    /// # Errors
    /// What pread(2) gives.
    pub fn read(&self, id: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inodes.get(id)?;
        let file = self.file(&inode, false)?;
        sys::file::read_full(&*file, buf, offset)
    }

    /// Writes `data`; `clear_for` names the writer when it may not keep set-id bits.
    ///
    /// # Errors
    /// What pwrite(2) gives; part of the data may have been written when fewer bytes are returned.
    pub fn write(
        &self, id: u64, offset: u64, data: &[u8], clear_for: Option<Caller>,
    ) -> Result<usize> {
        let inode = self.inodes.get(id)?;
        self.ensure_upper(&inode, Need::All)?;
        let file = self.file(&inode, true)?;
        self.write_open(&inode, &file, offset, data, clear_for)
    }

    /// The same for who has the file open to append to it, and takes `offset` for its end.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn append(
        &self, id: u64, offset: u64, data: &[u8], clear_for: Option<Caller>,
    ) -> Result<usize> {
        let inode = self.inodes.get(id)?;
        if self.nodes.current(&inode) == inode.id {
            return self.write(id, offset, data, clear_for);
        }
        // Each node has a size of its own in the kernel, and may have missed the other's writes.
        self.ensure_upper(&inode, Need::All)?;
        let file = self.file(&inode, true)?;
        self.before_write(&inode, &file, clear_for)?;
        sys::file::append_full(&*file, data)
    }

    /// The same for what may have been appended before.
    ///
    /// # Errors
    /// As [`Self::write_unopened`].
    pub fn append_again(
        &self, id: u64, offset: u64, data: &[u8], clear_for: Option<Caller>,
    ) -> Result<usize> {
        let inode = self.inodes.get(id)?;
        if self.nodes.current(&inode) == inode.id {
            return self.write_unopened(id, offset, data, clear_for);
        }
        // The kernel's idea of the end may be behind: what it was when this was done is not known.
        // Appended last, it stands at the end.
        let file = self.file(&inode, false)?;
        let size = sys::stat::fstat(&*file)?.size;
        let mut last = vec![0; data.len()];
        let from = size.checked_sub(data.len() as u64);
        if let Some(from) = from
            && sys::file::read_full(&*file, &mut last, from)? == data.len()
            && last == data
        {
            return Ok(data.len());
        }
        self.append(id, offset, data, clear_for)
    }

    /// Writes to a file of the upper that was opened for it.
    pub(super) fn write_open(
        &self, inode: &Arc<Inode>, file: &OwnedFd, offset: u64, data: &[u8],
        clear_for: Option<Caller>,
    ) -> Result<usize> {
        self.before_write(inode, file, clear_for)?;
        sys::file::write_full(file, data, offset)
    }

    fn before_write(
        &self, inode: &Arc<Inode>, file: &OwnedFd, clear_for: Option<Caller>,
    ) -> Result<()> {
        self.data_change(inode)?;
        match clear_for {
            Some(caller) => self.clear_set_ids(inode, file, caller),
            None => Ok(()),
        }
    }

    /// Flushes a file or directory to stable storage; `open` is the number of the open that asks, 0 if it
    /// has none.
    ///
    /// # Errors
    /// What fsync(2) gives, also what it gave before to another who had the file open at the same time.
    pub fn fsync(&self, id: u64, open: u64, data_only: bool) -> Result<()> {
        let inode = self.inodes.get(id)?;
        let result = self.flush_to_disk(&inode, data_only)?;
        if inode.kind == FileKind::Directory {
            return result;
        }
        self.told.tell(&inode, open, result)
    }

    /// Gives what flushing gave, which is of the data and for all to know.
    ///
    /// # Errors
    /// Of the way there, such as too many open files: nothing was asked, and nobody else is concerned.
    fn flush_to_disk(&self, inode: &Arc<Inode>, data_only: bool) -> Result<Result<()>> {
        if self.volatile || !self.in_upper(inode) {
            // A lower is not changed, so it has nothing to flush.
            return Ok(Ok(()));
        }
        if inode.kind == FileKind::Directory {
            let dir = {
                let _tree = self.tree.read();
                let path = self.dir_fd(inode, 0)?;
                self.with_descriptors(|| sys::fd::reopen_dir(&*path))?
            };
            return Ok(sys::file::sync(&dir, data_only));
        }
        let unsettled = inode.settled.begin();
        let data_only = data_only && unsettled.is_none();
        let result = if inode.is_borrowed() {
            let own = self.with_real(inode, |real| self.open_real(real, 0, false))?;
            sys::file::sync(&own, data_only)
        } else {
            // Any descriptor will do, and the file may be one that cannot be opened for writing.
            let file = self.file(inode, false)?;
            sys::file::sync(&*file, data_only)
        };
        if let (Some(begun), Ok(())) = (unsettled, result) {
            inode.settled.end(begun);
        }
        Ok(result)
    }

    /// Has all that leads to a file's data on disk: who writes past us with O_DSYNC flushes only these.
    ///
    /// # Errors
    /// What fsync(2) gives.
    pub fn flush_once(&self, id: u64, open: u64) -> Result<()> {
        let inode = self.inodes.get(id)?;
        match inode.settled.begin() {
            Some(_) => self.fsync(id, open, false),
            None => Ok(()),
        }
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// What the call on the upper gives.
    pub fn fallocate(
        &self, id: u64, mode: i32, offset: u64, len: u64, caller: Caller,
    ) -> Result<()> {
        let inode = self.inodes.get(id)?;
        self.regular(&inode)?;
        self.ensure_upper(&inode, Need::All)?;
        let file = self.file(&inode, true)?;
        sys::file::fallocate(&*file, mode, offset, len)?;
        self.data_change(&inode)?;
        if caller.uid != 0 {
            self.clear_set_ids(&inode, &file, caller)?;
        }
        Ok(())
    }

    /// The next data, or with `hole` the next hole, at or after `offset`; of the file `old` if the
    /// caller reads that.
    ///
    /// # Errors
    /// ENXIO past the end.
    pub fn seek_data(
        &self, id: u64, old: Option<&OwnedFd>, offset: u64, hole: bool,
    ) -> Result<u64> {
        if let Some(old) = old {
            return sys::file::seek_data(old, offset, hole);
        }
        let inode = self.inodes.get(id)?;
        let file = self.file(&inode, false)?;
        sys::file::seek_data(&*file, offset, hole)
    }

    /// copy_file_range(2): on one backing filesystem a reflink, or a copy in the kernel. From the
    /// file `old` if the caller reads that.
    ///
    /// # Errors
    /// What the call on the layers gives.
    pub fn copy_range(
        &self, from: (u64, u64), old: Option<&OwnedFd>, to: (u64, u64), len: u64, caller: Caller,
    ) -> Result<usize> {
        let source = self.inodes.get(from.0)?;
        let dst = self.inodes.get(to.0)?;
        self.regular(&source)?;
        self.regular(&dst)?;
        self.ensure_upper(&dst, Need::All)?;
        // First the one to be written: opening it may bring data that were elsewhere, and the other
        // may be the same file.
        let file = self.file(&dst, true)?;
        let own = match old {
            Some(_) => None,
            None => Some(self.file(&source, false)?),
        };
        let src = old.or(own.as_deref()).ok_or(Errno::IO)?;
        let len = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(i32::MAX as usize);
        let copied = sys::file::copy_range(src, from.1, &*file, to.1, len)?;
        if self.in_upper(&source) {
            // It was read, without the kernel's knowledge.
            self.stale.tell(from.0, What::Attributes);
        }
        self.data_change(&dst)?;
        if caller.uid != 0 {
            self.clear_set_ids(&dst, &file, caller)?;
        }
        Ok(copied)
    }

    /// The attribute ioctls (inode flags, project id); see [`sys::ioctl`].
    ///
    /// # Errors
    /// ENOTTY for any other, and what the real object's filesystem gives.
    pub fn ioctl(&self, id: u64, command: u32, input: &[u8], out: usize) -> Result<Vec<u8>> {
        let inode = self.inodes.get(id)?;
        let changes = matches!(command, sys::ioctl::SETFLAGS | sys::ioctl::FSSETXATTR);
        if changes {
            self.ensure_upper(&inode, Need::All)?;
            self.own_data(&inode, Need::All)?;
        }
        match inode.kind {
            FileKind::Regular => {
                if changes && inode.is_borrowed() {
                    // It would be the file of a lower.
                    return Err(Errno::IO);
                }
                let file = self.file(&inode, false)?;
                let result = sys::ioctl::attribute(&*file, command, input, out);
                if changes {
                    self.reopen_files(&inode);
                    self.stale.tell(id, What::Attributes);
                }
                result
            }
            FileKind::Directory => {
                let dir = {
                    let _tree = self.tree.read();
                    let path = self.dir_fd(&inode, inode.layer())?;
                    self.with_descriptors(|| sys::fd::reopen_dir(&*path))?
                };
                let result = sys::ioctl::attribute(&dir, command, input, out);
                if changes {
                    self.stale.tell(id, What::Attributes);
                }
                result
            }
            _ => Err(Errno::NOTTY),
        }
    }
}
