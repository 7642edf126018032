//! Failures and delays by order of the test.

use std::time::Duration;

use crate::mount::{Effect, Injected, Rule};
use crate::stats::Op;
use crate::sys::Errno;

/// What a program does with a file, as the kernel asks for it.
///
/// The kernel keeps what it knows, so not every system call is asked for: a file that was read is read
/// from memory the next time, a name that was found is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A name is looked up for the first time.
    Lookup,
    /// Attributes are asked for.
    GetAttributes,
    /// Mode, owner, size (truncation) or times are changed.
    SetAttributes,
    /// A file that is there is opened.
    Open,
    /// Data that the kernel does not have in memory are read; several reads of a program may be one. What
    /// it reads ahead and fails it reads again, so a program sees a failure only if that lasts.
    Read,
    /// Data are written: one for each write(2) of up to 1 MiB that does not cross many pages, and for
    /// each copy_file_range(2), by which many programs copy files.
    Write,
    /// Data are flushed to stable storage: fsync(2) and fdatasync(2), of directories too.
    Sync,
    /// Room is reserved: fallocate(2).
    Allocate,
    /// A file, a fifo or a device is made.
    Create,
    /// A directory is made.
    CreateDirectory,
    /// A symbolic link is made.
    Symlink,
    /// A file gets a further name.
    Link,
    /// A name that is no directory's is removed.
    Remove,
    /// A directory is removed.
    RemoveDirectory,
    /// Something gets another name.
    Rename,
    /// A directory is listed that the kernel has no listing of.
    List,
    /// An extended attribute or an ACL is set or removed.
    SetXattr,
}

impl Operation {
    fn kinds(self) -> &'static [Op] {
        match self {
            Self::Lookup => &[Op::Lookup],
            Self::GetAttributes => &[Op::Getattr],
            Self::SetAttributes => &[Op::Setattr],
            Self::Open => &[Op::Open],
            Self::Read => &[Op::Read],
            Self::Write => &[Op::Write, Op::CopyFileRange],
            Self::Sync => &[Op::Fsync, Op::Fsyncdir],
            Self::Allocate => &[Op::Fallocate],
            Self::Create => &[Op::Create, Op::Mknod],
            Self::CreateDirectory => &[Op::Mkdir],
            Self::Symlink => &[Op::Symlink],
            Self::Link => &[Op::Link],
            Self::Remove => &[Op::Unlink],
            Self::RemoveDirectory => &[Op::Rmdir],
            Self::Rename => &[Op::Rename],
            Self::List => &[Op::Readdir, Op::Readdirplus],
            Self::SetXattr => &[Op::Setxattr, Op::Removexattr],
        }
    }
}

/// A failure or a delay, for [`Builder::fault`](super::Builder::fault).
///
/// ```
/// use std::time::Duration;
/// use unionfs::{Fault, Operation};
///
/// let full = Fault::fail(Operation::Write, libc::ENOSPC).nth(3);
/// let slow = Fault::delay(Operation::Read, Duration::from_millis(20));
/// # let _ = (full, slow);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    operation: Operation,
    range: (u64, u64),
    effect: Effect,
}

impl Fault {
    /// Every `operation` fails with `errno` (such as `libc::ENOSPC`, as a number) and does nothing.
    #[must_use]
    pub fn fail(operation: Operation, errno: i32) -> Self {
        // A program must not be told of success, or of nothing, where it was not.
        let errno = if (1..4096).contains(&errno) {
            errno
        } else {
            libc::EIO
        };
        Self {
            operation,
            range: (1, u64::MAX),
            effect: Effect::Fail(Errno::from_raw_os_error(errno)),
        }
    }

    /// Every `operation` takes so much longer. It may be ended by the end of the mount.
    #[must_use]
    pub fn delay(operation: Operation, time: Duration) -> Self {
        Self {
            operation,
            range: (1, u64::MAX),
            effect: Effect::Delay(time),
        }
    }

    /// Only the `n`-th, counted from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self {
            range: (n, n),
            ..self
        }
    }

    /// Only the `n`-th, counted from 1, and all that follow, as on a disk that is full.
    #[must_use]
    pub fn from_nth(self, n: u64) -> Self {
        Self {
            range: (n, u64::MAX),
            ..self
        }
    }

    /// True when it takes the time of a thread.
    pub(super) fn is_delay(&self) -> bool {
        matches!(self.effect, Effect::Delay(_))
    }
}

/// The rules that these are, with nothing counted yet.
pub(super) fn injected(faults: &[Fault]) -> Injected {
    let rule = |fault: &Fault| Rule::new(fault.operation.kinds(), fault.range, fault.effect);
    Injected::new(faults.iter().map(rule).collect())
}
