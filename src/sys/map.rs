//! Files as memory, to be handed to the kernel.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{Errno, Result};

/// A file in memory, read-only and shared with the page cache.
///
/// Its bytes are for system calls. A file may be cut by whoever can write it; what is gone then gives
/// SIGBUS to a program that touches it, but EFAULT to a system call that is given it.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the memory is not bound to a thread, and nobody in this process changes it.
unsafe impl Send for Mapping {}
// SAFETY: the same; it is only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first `len` bytes of a file.
    ///
    /// # Errors
    /// EINVAL for none, and what mmap(2) gives, as ENOMEM for a file that is too large for it.
    pub fn new(fd: impl AsFd, len: u64) -> Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new mapping, at a place of the kernel's choice, touches no memory that is in use.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        // SAFETY: it is the mapping that was just made; the advice changes nothing of what it holds.
        // Without it, only reading would be slower.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr(), len, Advice::Sequential) };
        Ok(Self { start, len })
    }

    /// At most `len` bytes from `offset` on, fewer at the end. They are to be given to a system call,
    /// and not to be looked at: see the type.
    pub fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        let offset = usize::try_from(offset).map_or(self.len, |at| at.min(self.len));
        let len = len.min(self.len - offset);
        // SAFETY: the part lies in the mapping, which lives as long as the result. Another process may
        // change the bytes meanwhile, so callers must not look at them; the kernel takes them as they
        // are at that moment.
        unsafe {
            let start = self.start.as_ptr().cast::<u8>().add(offset);
            std::slice::from_raw_parts(start, len)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is the mapping that `new` made, and nobody has a part of it any longer.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_are_those_of_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        file.write_all(&data).unwrap();
        let map = Mapping::new(&file, 10_000).unwrap();
        for (offset, len) in [(0, 10), (4095, 3), (9_999, 1), (0, 10_000)] {
            assert_eq!(map.bytes(offset, len), &data[offset as usize..][..len]);
        }
        assert_eq!(map.bytes(9_990, 100), &data[9_990..]);
        assert!(map.bytes(10_000, 1).is_empty() && map.bytes(u64::MAX, 1).is_empty());
        assert!(matches!(Mapping::new(&file, 0), Err(Errno::INVAL)));
        assert!(Mapping::new(&file, u64::MAX / 2).is_err());
    }

    #[test]
    fn what_was_cut_is_an_error_of_the_call() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let map = Mapping::new(&file, 8192).unwrap();
        file.set_len(0).unwrap();
        let (_read, write) = std::os::unix::net::UnixStream::pair().unwrap();
        let result = rustix::io::write(&write, map.bytes(0, 4096));
        assert_eq!(result, Err(Errno::FAULT));
    }
}
