//! In which order a filesystem brings changes to its disk.
//!
//! A copy gets its name when its data are where no power cut can take them from under the name.
//! fsync does that, and commits the journal for each file, which is what takes the time. Some
//! filesystems promise enough without: what was written and waited for is found after a crash if
//! the name is, as finding it is part of a transaction that is not later than the name's, and that
//! transaction flushes the device's cache before it counts. `docs/FORMAT.md` has the reasons, with
//! their sources; whatever is not known for certain counts as nothing promised.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::sys::copy::Copied;
use crate::sys::{self, Errno, Result};

const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;

/// What is on disk before a name that is given later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    /// Data that were written out and waited for, or cloned.
    Written,
    /// Nothing, as far as is known.
    Unknown,
}

impl Order {
    /// What the filesystem of `root` promises, as it is mounted now.
    pub fn of(root: impl AsFd) -> Self {
        let root = root.as_fd();
        let order = match sys::stat::filesystem_type(root) {
            Ok(EXT4) => ext4(root),
            Ok(XFS) => xfs(root),
            _ => None,
        };
        order.unwrap_or(Self::Unknown)
    }

    /// Brings the data of a file that has no name yet where they must be before it gets one.
    pub fn settle(self, file: impl AsFd, copied: Copied) -> Result<()> {
        match (self, copied) {
            (_, Copied::Empty) => Ok(()),
            (Self::Written, Copied::Nothing | Copied::Cloned) => Ok(()),
            (Self::Written, Copied::Written) => match sys::file::write_out(&file) {
                // A sandbox that does not let it through.
                Err(Errno::NOSYS | Errno::PERM) => sys::file::sync(file, false),
                result => result,
            },
            _ => sys::file::sync(file, false),
        }
    }
}

/// ext4 with its journal inside and `data=ordered`.
fn ext4(root: BorrowedFd<'_>) -> Option<Order> {
    let device = device_name(root)?;
    // Its default may come from the superblock, so the list of mounts does not tell.
    let options = std::fs::read_to_string(format!("/proc/fs/ext4/{device}/options")).ok()?;
    let has = |option: &str| options.lines().any(|line| line == option);
    // An asynchronous commit does not flush what was written before it.
    // What fsync of another file puts beside the journal's transactions was not looked into.
    let plain = !has("journal_async_commit") && !has("fast_commit");
    let ordered = has("data=ordered") && plain;
    // Without a journal there is no such entry; of one elsewhere it has another name.
    let inside = Path::new("/proc/fs/jbd2")
        .join(format!("{device}-8"))
        .exists();
    (ordered && inside).then_some(Order::Written)
}

/// XFS with all its parts on one device.
fn xfs(root: BorrowedFd<'_>) -> Option<Order> {
    let stat = sys::stat::stat_at(root, b"").ok()?;
    let device = format!("{}:{}", major(stat.dev), minor(stat.dev));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&device))?;
    let options = mount.rsplit(' ').next()?.split(',');
    let elsewhere = |option: &str| option.starts_with("logdev=") || option.starts_with("rtdev=");
    (!options.into_iter().any(elsewhere)).then_some(Order::Written)
}

/// What the kernel calls the block device of a filesystem.
fn device_name(root: BorrowedFd<'_>) -> Option<String> {
    let stat = sys::stat::stat_at(root, b"").ok()?;
    let number = format!("{}:{}", major(stat.dev), minor(stat.dev));
    let link = std::fs::read_link(Path::new("/sys/dev/block").join(number)).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn major(dev: u64) -> u32 {
    rustix::fs::major(dev)
}

fn minor(dev: u64) -> u32 {
    rustix::fs::minor(dev)
}
