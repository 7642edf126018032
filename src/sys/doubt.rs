//! Calls for names that say they failed though they did their work.
//!
//! Where an answer can be lost (filesystems of the network, disks whose errors come late), EIO does not say that nothing was
//! done. Whoever went on as if it were so would count names that are gone, or miss some that are there. So after such an
//! answer the name is looked at, and what shows that the work was done counts as success. Callers
//! keep others from changing the name meanwhile.

use std::os::fd::BorrowedFd;

use super::at::readlink_at;
use super::stat::{FileKind, Stat, stat_at};
use super::{Errno, Result};

/// Success for an answer that leaves open what was done, if the look says that all was.
pub(super) fn settle(answer: Result<()>, is_done: impl FnOnce() -> bool) -> Result<()> {
    match answer {
        Err(e) if is_open(e) && is_done() => Ok(()),
        answer => answer,
    }
}

/// True for an errno that does not say whether anything was done.
pub(super) fn is_open(answer: Errno) -> bool {
    matches!(answer, Errno::IO | Errno::TIMEDOUT)
}

/// True when nothing has this name.
pub(super) fn is_gone(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    matches!(stat_at(dir, name), Err(Errno::NOENT))
}

/// True when both names are of one object; an empty one means the descriptor's own.
pub(super) fn is_one(a: (BorrowedFd<'_>, &[u8]), b: (BorrowedFd<'_>, &[u8])) -> bool {
    let key = |(dir, name)| stat_at(dir, name).map(|stat: Stat| (stat.dev, stat.ino));
    key(a).is_ok_and(|found| key(b) == Ok(found))
}

/// True when the name has an object of this kind as it is right after it was made; `rdev` is a device's.
///
/// A directory in which there is something has another time of change, as has what got attributes.
pub(super) fn is_new(dir: BorrowedFd<'_>, name: &[u8], kind: FileKind, rdev: u64) -> bool {
    let Ok(stat) = stat_at(dir, name) else {
        return false;
    };
    let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    stat.kind() == kind
        && (stat.rdev == rdev || !is_device)
        && (stat.size == 0 || kind != FileKind::Regular)
        && (stat.nlink == 1 || (stat.nlink == 2 && kind.is_dir()))
        && stat.mtime == stat.ctime
}

/// The same for a symlink.
pub(super) fn is_new_symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> bool {
    is_new(dir, name, FileKind::Symlink, 0) && readlink_at(dir, name).is_ok_and(|t| t == target)
}
