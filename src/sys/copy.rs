//! Copying a file's data: by reflink, in the kernel, or through a buffer; holes stay holes.

use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::fault::change;
use super::{Errno, Result, Stat, file};

/// Buffer of the last resort; large enough that the call's cost does not show.
const BUFFER: usize = 1 << 20;

/// One copy_file_range call at most; a bound keeps a signal or an unmount from waiting long.
const RANGE: u64 = 64 << 20;

/// Below this size in bytes a file that has all its blocks is not searched for holes.
const SMALL: u64 = 64 << 10;

/// What became of the data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Copied {
    /// There are none.
    Empty,
    /// All are holes.
    Nothing,
    /// Both files share them.
    Cloned,
    /// They were written.
    Written,
}

/// What one target filesystem refuses to do with files of others, so that it is asked once and not
/// for each file.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<SmallVec<[(u64, Way); 4]>>);

/// A way that not all filesystems know, nor any two of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Clone,
    InKernel,
}

impl Refusals {
    /// True when this was not refused before for files of the device `from`.
    fn may(&self, way: Way, from: &Stat) -> bool {
        !self.0.lock().contains(&(from.dev, way))
    }

    /// Remembers a refusal that holds for all files of the device.
    fn note(&self, way: Way, from: &Stat, error: Errno) {
        let lasting = [Errno::OPNOTSUPP, Errno::XDEV, Errno::NOSYS, Errno::NOTTY];
        if lasting.contains(&error) && self.may(way, from) {
            self.0.lock().push((from.dev, way));
        }
    }
}

/// Copies the first `len` bytes of `src`, whose attributes are `from`, into the empty file `dst`,
/// which then has that size.
pub(crate) fn copy_data(
    src: impl AsFd, from: &Stat, dst: impl AsFd, len: u64, refusals: &Refusals,
) -> Result<Copied> {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    if len == 0 {
        return Ok(Copied::Empty);
    }
    if refusals.may(Way::Clone, from) {
        // A clone of the whole file is cut to size afterwards: it moves no data in either case.
        match change("ficlone", || rustix::fs::ioctl_ficlone(dst, src)) {
            Ok(()) if len < from.size => return file::truncate(dst, len).map(|()| Copied::Cloned),
            Ok(()) => return Ok(Copied::Cloned),
            Err(e) => refusals.note(Way::Clone, from, e),
        }
    }
    let mut copying = Copying {
        src,
        dst,
        from,
        refusals,
        in_kernel: refusals.may(Way::InKernel, from),
    };
    let (mut pos, mut copied) = (0, Copied::Nothing);
    let is_dense = from.size <= SMALL && from.blocks.saturating_mul(512) >= from.size;
    let mut size = 0;
    while pos < len {
        let (start, end) = if is_dense {
            (0, len)
        } else {
            next_data(src, pos, len)?
        };
        if start >= len {
            break;
        }
        size = copying.extent(start, end)?;
        copied = Copied::Written;
        pos = end;
    }
    if size != len {
        // A hole ends the file, or the source was cut while being copied.
        file::truncate(dst, len)?;
    }
    Ok(copied)
}

/// Where the next data at or after `pos` begin and end, at most at `len`; they begin there when
/// there are none.
fn next_data(src: BorrowedFd<'_>, pos: u64, len: u64) -> Result<(u64, u64)> {
    let start = match file::seek_data(src, pos, false) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok((len, len)),
        // The filesystem does not know holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => pos,
        Err(e) => return Err(e),
    };
    if start >= len {
        return Ok((len, len));
    }
    let end = file::seek_data(src, start, true).unwrap_or(len).min(len);
    Ok((start, end.max(start + 1)))
}

/// One file on its way.
struct Copying<'a> {
    src: BorrowedFd<'a>,
    dst: BorrowedFd<'a>,
    from: &'a Stat,
    refusals: &'a Refusals,
    /// copy_file_range was not refused yet.
    in_kernel: bool,
}

impl Copying<'_> {
    /// Copies the bytes from `start` to `end`; returns how far it came, which is less if the source
    /// is shorter now.
    fn extent(&mut self, start: u64, end: u64) -> Result<u64> {
        let mut pos = start;
        while self.in_kernel && pos < end {
            let want = usize::try_from((end - pos).min(RANGE)).unwrap_or(BUFFER);
            match file::copy_range(self.src, pos, self.dst, pos, want) {
                Ok(0) => break,
                Ok(n) => pos += n as u64,
                Err(Errno::INTR) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) => return Err(e),
                // Any other refusal (other filesystem, no support) is not yet the file's failure.
                Err(e) => {
                    self.refusals.note(Way::InKernel, self.from, e);
                    self.in_kernel = false;
                }
            }
        }
        if pos < end {
            self.by_buffer(pos, end)
        } else {
            Ok(pos)
        }
    }

    fn by_buffer(&self, mut pos: u64, end: u64) -> Result<u64> {
        let size = usize::try_from(end - pos).unwrap_or(BUFFER).min(BUFFER);
        let mut buffer = vec![0; size];
        while pos < end {
            let want = usize::try_from(end - pos).unwrap_or(size).min(size);
            let got = file::read_full(self.src, &mut buffer[..want], pos)?;
            if got == 0 {
                break;
            }
            let mut put = 0;
            while put < got {
                put += match file::write_full(self.dst, &buffer[put..got], pos + put as u64)? {
                    0 => return Err(Errno::NOSPC),
                    n => n,
                };
            }
            pos += got as u64;
        }
        Ok(pos)
    }
}
