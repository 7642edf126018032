//! Copying a file's data: by reflink, in the kernel, or through a buffer; holes stay holes.

use std::os::fd::AsFd;

use super::{Errno, Result, file};

/// Buffer of the last resort; large enough that the call's cost does not show.
const BUFFER: usize = 1 << 20;

/// One copy_file_range call at most; a bound keeps a signal or an unmount from waiting long.
const RANGE: u64 = 64 << 20;

/// Copies the first `len` bytes of `src` into the empty file `dst`, which then has that size.
pub(crate) fn copy_data(src: impl AsFd, dst: impl AsFd, src_size: u64, len: u64) -> Result<()> {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    if len == 0 {
        return Ok(());
    }
    // A clone of the whole file is cut to size afterwards: it moves no data in either case.
    if rustix::fs::ioctl_ficlone(dst, src).is_ok() {
        return if len < src_size {
            file::truncate(dst, len)
        } else {
            Ok(())
        };
    }
    let mut in_kernel = true;
    let mut pos = 0;
    while pos < len {
        let start = match file::seek_data(src, pos, false) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // The filesystem does not know holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => pos,
            Err(e) => return Err(e),
        };
        let end = file::seek_data(src, start, true).unwrap_or(len).min(len);
        if start >= len {
            break;
        }
        copy_extent(src, dst, start, end.max(start + 1), &mut in_kernel)?;
        pos = end.max(start + 1);
    }
    file::truncate(dst, len)
}

/// Copies the bytes from `start` to `end`; clears `in_kernel` once copy_file_range is refused.
fn copy_extent(
    src: impl AsFd, dst: impl AsFd, start: u64, end: u64, in_kernel: &mut bool,
) -> Result<()> {
    let mut pos = start;
    while *in_kernel && pos < end {
        let want = usize::try_from((end - pos).min(RANGE)).unwrap_or(BUFFER);
        match file::copy_range(src.as_fd(), pos, dst.as_fd(), pos, want) {
            Ok(0) => break,
            Ok(n) => pos += n as u64,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC) => return Err(Errno::NOSPC),
            Err(Errno::DQUOT) => return Err(Errno::DQUOT),
            // Any other refusal (other filesystem, no support) is not yet the file's failure.
            Err(_) => *in_kernel = false,
        }
    }
    if pos >= end {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER];
    while pos < end {
        let want = usize::try_from((end - pos).min(BUFFER as u64)).unwrap_or(BUFFER);
        let got = file::read_full(src.as_fd(), &mut buffer[..want], pos)?;
        if got == 0 {
            // The source ended early: it was cut while being copied.
            break;
        }
        let mut put = 0;
        while put < got {
            put += match file::write_full(dst.as_fd(), &buffer[put..got], pos + put as u64)? {
                0 => return Err(Errno::NOSPC),
                n => n,
            };
        }
        pos += got as u64;
    }
    Ok(())
}
