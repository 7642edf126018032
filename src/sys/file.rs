//! Calls on an open file.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{FallocateFlags, SeekFrom};

use super::fault::change;
use super::{Errno, Result};

/// Reads until `buf` is full or the file ends; returns how much was read.
pub(crate) fn read_full(fd: impl AsFd, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd.as_fd(), &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // What was read is good; the error comes again at the next read.
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes all of `data`, or as much as fits; an error only when nothing was written.
pub(crate) fn write_full(fd: impl AsFd, data: &[u8], offset: u64) -> Result<usize> {
    in_full(data, |rest, done| {
        change("pwrite", || {
            rustix::io::pwrite(fd.as_fd(), rest, offset + done as u64)
        })
    })
}

/// Writes all of `data`, or as much as fits, each piece to where the file ends at that moment; an error
/// only when nothing was written.
pub(crate) fn append_full(fd: impl AsFd, data: &[u8]) -> Result<usize> {
    in_full(data, |rest, _| {
        let rest = [std::io::IoSlice::new(rest)];
        change("pwritev2", || {
            rustix::io::pwritev2(fd.as_fd(), &rest, 0, rustix::io::ReadWriteFlags::APPEND)
        })
    })
}

/// Gives `write` what is not written yet, and how much is, until all is or no more can be.
fn in_full(data: &[u8], mut write: impl FnMut(&[u8], usize) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match write(&data[done..], done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // What was written is; the error comes again at the next write.
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Sets the size.
pub(crate) fn truncate(fd: impl AsFd, size: u64) -> Result<()> {
    change("ftruncate", || rustix::fs::ftruncate(fd, size))
}

/// fallocate(2) with the caller's raw mode bits.
#[allow(clippy::cast_sign_loss)]
pub(crate) fn fallocate(fd: impl AsFd, mode: i32, offset: u64, len: u64) -> Result<()> {
    let flags = FallocateFlags::from_bits_retain(mode as u32);
    change("fallocate", || {
        rustix::fs::fallocate(fd, flags, offset, len)
    })
}

/// Flushes the file to stable storage; `data_only` leaves out what reading does not need.
pub(crate) fn sync(fd: impl AsFd, data_only: bool) -> Result<()> {
    if data_only {
        change("fdatasync", || rustix::fs::fdatasync(fd))
    } else {
        change("fsync", || rustix::fs::fsync(fd))
    }
}

/// Writes the file's data to its filesystem's device and waits for that; what the device's own cache
/// holds, and what it takes to find the data again, is not flushed.
pub(crate) fn write_out(fd: impl AsFd) -> Result<()> {
    // All three: the kernel then waits as for fsync, instead of passing over busy pages.
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(fd, flags)
}

/// Has the data of a file be written out from now on, without waiting for that. What went wrong at once
/// it says; whoever needs the data on disk flushes or waits afterwards.
pub(crate) fn begin_write_out(fd: impl AsFd) -> Result<()> {
    match sync_range(fd, libc::SYNC_FILE_RANGE_WRITE) {
        // A sandbox that does not let it through; nothing depends on it.
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

fn sync_range(fd: impl AsFd, flags: libc::c_uint) -> Result<()> {
    change("sync_file_range", || {
        // SAFETY: the descriptor is open for the call, which takes plain numbers else.
        match unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) } {
            0 => Ok(()),
            _ => Err(super::fd::last_errno()),
        }
    })
}

/// Flushes the whole filesystem of an open file.
pub(crate) fn sync_filesystem(fd: impl AsFd) -> Result<()> {
    change("syncfs", || rustix::fs::syncfs(fd))
}

/// The next data (or, with `hole`, the next hole) at or after `offset`.
pub(crate) fn seek_data(fd: impl AsFd, offset: u64, hole: bool) -> Result<u64> {
    let pos = if hole {
        SeekFrom::Hole(offset)
    } else {
        SeekFrom::Data(offset)
    };
    rustix::fs::seek(fd, pos)
}

/// copy_file_range(2) with explicit offsets.
pub(crate) fn copy_range(
    src: impl AsFd, src_offset: u64, dst: impl AsFd, dst_offset: u64, len: usize,
) -> Result<usize> {
    let (mut from, mut to) = (src_offset, dst_offset);
    change("copy_file_range", || {
        rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), len)
    })
}

/// fchmodat2(2), Linux 6.6: permission bits of a name or handle, never through a symlink.
pub(crate) fn fchmodat2(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<()> {
    /// The same number on every architecture that Linux added calls to after 5.1.
    const SYS_FCHMODAT2: libc::c_long = 452;
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    change("fchmodat", || {
        // SAFETY: `dir` is open for the call, `name` is NUL-terminated and outlives it, and the call
        // writes no memory of ours.
        match unsafe { libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), name.as_ptr(), mode, flags) } {
            0 => Ok(()),
            _ => Err(super::fd::last_errno()),
        }
    })
}
