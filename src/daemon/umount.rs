//! `unionfs umount`: as root or in a user namespace by umount2, else through fusermount3.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::Failure;
use crate::sys::fusermount;

/// Takes away what is mounted at `mountpoint`.
///
/// # Errors
/// When it is busy, is no mountpoint, or belongs to somebody else.
pub fn umount(mountpoint: &Path) -> Result<(), Failure> {
    let fail = |reason: &dyn std::fmt::Display| {
        Failure::new(format_args!("umount {}: {reason}", mountpoint.display()))
    };
    match umount2(mountpoint, MntFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => fusermount::unmount(mountpoint, false).map_err(|reason| fail(&reason)),
        Err(Errno::EINVAL) => Err(fail(&"not a mountpoint")),
        Err(errno) => Err(fail(&errno.desc())),
    }
}
