//! Extended attributes of a name or a handle, never through a symlink.
//!
//! The *xattrat calls came with Linux 6.13 only, so a name is reached as `/proc/self/fd/DIR/NAME`:
//! the l* calls do not follow the last component, and the magic link of a directory handle cannot
//! leave it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::XattrFlags;

use super::fd::proc_path_at;
use super::{Errno, Result};

/// Linux's limits for a value and for a list of names, in bytes.
const MAX: usize = 65536;

/// Removes an attribute of what a path leads to.
pub(crate) fn remove_path(path: &Path, attr: &[u8]) -> Result<()> {
    rustix::fs::removexattr(path, attr)
}

/// The value of `attr`, or `None` when there is none or the filesystem has no such attributes.
pub(crate) fn get(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = proc_path_at(dir, name);
    let mut small = [0_u8; 256];
    let got = if name.is_empty() {
        rustix::fs::getxattr(path.as_slice(), attr, &mut small)
    } else {
        rustix::fs::lgetxattr(path.as_slice(), attr, &mut small)
    };
    match got {
        Ok(n) => Ok(Some(small[..n].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; MAX];
            let got = if name.is_empty() {
                rustix::fs::getxattr(path.as_slice(), attr, large.as_mut_slice())
            } else {
                rustix::fs::lgetxattr(path.as_slice(), attr, large.as_mut_slice())
            };
            got.map(|n| {
                large.truncate(n);
                Some(large)
            })
        }
        Err(e) => Err(e),
    }
}

/// The names of all attributes, each ended by a NUL byte; empty without support.
pub(crate) fn list(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let path = proc_path_at(dir, name);
    let call = |buf: &mut [u8]| {
        if name.is_empty() {
            rustix::fs::listxattr(path.as_slice(), buf)
        } else {
            rustix::fs::llistxattr(path.as_slice(), buf)
        }
    };
    let mut small = [0_u8; 512];
    match call(&mut small) {
        Ok(n) => Ok(small[..n].to_vec()),
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; MAX];
            let n = call(&mut large)?;
            large.truncate(n);
            Ok(large)
        }
        Err(e) => Err(e),
    }
}

/// Sets `attr`; `flags` are setxattr(2)'s.
pub(crate) fn set(
    dir: BorrowedFd<'_>, name: &[u8], attr: &[u8], value: &[u8], flags: u32,
) -> Result<()> {
    let path = proc_path_at(dir, name);
    let flags = XattrFlags::from_bits_retain(flags);
    if name.is_empty() {
        rustix::fs::setxattr(path.as_slice(), attr, value, flags)
    } else {
        rustix::fs::lsetxattr(path.as_slice(), attr, value, flags)
    }
}

/// Removes `attr`.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8]) -> Result<()> {
    let path = proc_path_at(dir, name);
    if name.is_empty() {
        rustix::fs::removexattr(path.as_slice(), attr)
    } else {
        rustix::fs::lremovexattr(path.as_slice(), attr)
    }
}

/// Whether an open file carries one of `attrs`. Most files have no attributes at all, so they are
/// listed in one call.
pub(crate) fn has_any(fd: impl AsFd, attrs: &[&[u8]]) -> bool {
    let mut names = [0_u8; 1024];
    match rustix::fs::flistxattr(fd.as_fd(), &mut names) {
        Ok(len) => names[..len]
            .split(|&b| b == 0)
            .any(|name| attrs.contains(&name)),
        Err(_) => attrs.iter().any(|attr| {
            let mut none: [u8; 0] = [];
            rustix::fs::fgetxattr(fd.as_fd(), *attr, &mut none).is_ok()
        }),
    }
}
