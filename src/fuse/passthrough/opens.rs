//! What is asked of an open, and what is answered.

use std::sync::Arc;

use fuser::{FileHandle, FopenFlags};

use crate::union::OpenMode;

use super::Passed;

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) struct Opening {
    /// The node.
    pub id: u64,
    /// What for.
    pub mode: OpenMode,
    /// A shared mapping of it can be written.
    pub maps: bool,
    /// O_DIRECT.
    pub direct: bool,
    /// The kernel opens it for itself, to send an ioctl on its flags. No program opens a file without
    /// any flag, but for old ones of 32 bits.
    pub by_kernel: bool,
}

impl Opening {
    /// By the flags of open(2).
    pub fn new(id: u64, flags: i32) -> Self {
        Self {
            id,
            mode: OpenMode::from_flags(flags),
            maps: flags & libc::O_ACCMODE == libc::O_RDWR,
            direct: flags & libc::O_DIRECT != 0,
            by_kernel: flags == 0,
        }
    }

    /// The data may change by it.
    pub(super) fn writes(self) -> bool {
        self.mode.write || self.mode.truncate
    }

    /// By a program that does not ask for the data themselves past any cache.
    pub(super) fn only_reads(self) -> bool {
        !self.writes() && !self.direct && !self.by_kernel
    }
}

/// What to answer.
#[derive(Debug)]
pub(in crate::fuse) struct Opened {
    /// To be given back at release.
    pub handle: FileHandle,
    /// Beside the one for passthrough.
    pub flags: FopenFlags,
    /// The file; none if data go through us.
    pub backing: Option<Arc<Passed>>,
}
