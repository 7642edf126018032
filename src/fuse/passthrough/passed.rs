//! Files that the kernel has by an id.

use std::io;
use std::os::fd::BorrowedFd;

use fuser::{BackingId, ReplyCreate, ReplyOpen};

use crate::sys::handover::own_file;

/// Such a file. Dropped, it is closed for opens that come; what is open by it goes on.
#[derive(Debug)]
pub(in crate::fuse) struct Passed {
    /// Kept beside the other, which does not tell it.
    number: u32,
    id: BackingId,
}

impl Passed {
    /// For answers.
    pub fn id(&self) -> &BackingId {
        &self.id
    }

    /// For the next server.
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// An answer by which the kernel may get a file.
pub(in crate::fuse) trait Answer {
    /// Hands a file to the kernel.
    ///
    /// # Errors
    /// ELOOP for a file of a stacked filesystem; EPERM, ENOMEM and the like.
    fn pass(&self, file: BorrowedFd<'_>) -> io::Result<Passed>;

    /// Takes one that the kernel got from the last server.
    fn own(&self, number: u32) -> Passed;
}

impl Answer for ReplyOpen {
    fn pass(&self, file: BorrowedFd<'_>) -> io::Result<Passed> {
        Ok(self.own(self.open_backing(file)?.into_raw()))
    }

    fn own(&self, number: u32) -> Passed {
        let id = own_file(Self::wrap_backing, self, number);
        Passed { number, id }
    }
}

impl Answer for ReplyCreate {
    fn pass(&self, file: BorrowedFd<'_>) -> io::Result<Passed> {
        Ok(self.own(self.open_backing(file)?.into_raw()))
    }

    fn own(&self, number: u32) -> Passed {
        let id = own_file(Self::wrap_backing, self, number);
        Passed { number, id }
    }
}
