//! Memory that is mapped: pages of a file, or whole pages of none.

use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};

/// Mapped until it is dropped.
pub struct Map {
    at: NonNull<u8>,
    len: usize,
}

impl Map {
    /// The first `len` bytes of a file that is open for reading and writing; others see what is changed.
    pub fn shared(file: impl AsFd, len: usize) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, where nothing else is.
        let at = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, file, 0) }.unwrap();
        let at = NonNull::new(at.cast()).unwrap();
        Self { at, len }
    }

    /// Pages of no file.
    pub fn of_memory(len: usize) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, where nothing else is.
        let at = unsafe { mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE) }.unwrap();
        let at = NonNull::new(at.cast()).unwrap();
        Self { at, len }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: it is mapped for both as long as this lives, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// msync(2): the file has on disk what was changed.
    pub fn sync(&mut self) {
        // SAFETY: it is mapped as long as this lives.
        unsafe { msync(self.at.as_ptr().cast(), self.len, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the place.
        unsafe { munmap(self.at.as_ptr().cast(), self.len) }.unwrap();
    }
}
