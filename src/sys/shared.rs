//! Memory that outlives the process that writes it, as words that are read and stored whole.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::MemfdFlags;
use rustix::process::Resource;

use super::{Errno, Result};

/// What is reserved, from the most to the least, in bytes. Only what is written takes memory.
const SIZES: [u64; 3] = [16 << 30, 1 << 30, 64 << 20];

/// New memory without a name, all zero. Programs that are executed do not inherit it.
pub(crate) fn memory() -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"unionfs-nodes", MemfdFlags::CLOEXEC)?;
    // More than this would not be refused but end the process.
    let limit = rustix::process::getrlimit(Resource::Fsize).current;
    for size in SIZES {
        if limit.is_some_and(|limit| limit < size) {
            continue;
        }
        rustix::fs::ftruncate(&fd, size)?;
        if map(&fd).is_ok() {
            return Ok(fd);
        }
    }
    Err(Errno::NOMEM)
}

/// The words of such memory; they stay mapped as long as the process lives.
pub(crate) fn map(fd: impl AsFd) -> Result<&'static [AtomicU64]> {
    let size = usize::try_from(rustix::fs::fstat(&fd)?.st_size).map_err(|_| Errno::OVERFLOW)?;
    let words = size / size_of::<AtomicU64>();
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            fd.as_fd().as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(super::fd::last_errno());
    }
    // SAFETY: the mapping has so many words, is aligned to pages, and is never unmapped; the file is
    // never made shorter (only this module changes its size, before others see it). Any value is a
    // valid word, and every access, of other processes too, is an atomic one.
    Ok(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), words) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_mapping_stores_the_other_reads() {
        let fd = memory().unwrap();
        let (one, other) = (map(&fd).unwrap(), map(&fd).unwrap());
        assert_eq!(one.len(), other.len());
        let last = one.len() - 1;
        one[last].store(7, Ordering::Release);
        assert_eq!(other[last].load(Ordering::Acquire), 7);
        assert_eq!(other[0].load(Ordering::Acquire), 0);
    }
}
