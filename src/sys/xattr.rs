//! Extended attributes of a name or a handle, never through a symlink.
//!
//! The *xattrat calls came with Linux 6.13 only, so a name is reached as `/proc/self/fd/DIR/NAME`:
//! the l* calls do not follow the last component, and the magic link of a directory handle cannot
//! leave it. An empty name means the descriptor's own object: one call where the file is open, and
//! the magic link for an O_PATH handle, which the f* calls refuse with EBADF.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::XattrFlags;

use super::doubt::settle;
use super::fault::change;
use super::fd::proc_path_at;
use super::{Errno, Result};

/// Linux's limits for a value and for a list of names, in bytes.
const MAX: usize = 65536;

/// Removes an attribute of what a path leads to.
pub(crate) fn remove_path(path: &Path, attr: &[u8]) -> Result<()> {
    change("removexattr", || rustix::fs::removexattr(path, attr))
}

/// Runs `call` with the object's descriptor or its path, whichever works.
fn on<T>(
    dir: BorrowedFd<'_>, name: &[u8], mut call: impl FnMut(Object<'_>) -> Result<T>,
) -> Result<T> {
    if name.is_empty() {
        match call(Object::Open(dir)) {
            Err(Errno::BADF) => {}
            result => return result,
        }
    }
    let path = proc_path_at(dir, name);
    if name.is_empty() {
        call(Object::Handle(&path))
    } else {
        call(Object::Named(&path))
    }
}

/// How an object is reached.
enum Object<'a> {
    /// By an open file.
    Open(BorrowedFd<'a>),
    /// By the magic link of a handle, which is to be followed.
    Handle(&'a [u8]),
    /// By a path whose last component is not to be followed.
    Named(&'a [u8]),
}

/// The value of `attr`, or `None` when there is none or the filesystem has no such attributes.
pub(crate) fn get(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8]) -> Result<Option<Vec<u8>>> {
    let call = |buf: &mut [u8]| {
        on(dir, name, |object| match object {
            Object::Open(fd) => rustix::fs::fgetxattr(fd, attr, &mut *buf),
            Object::Handle(path) => rustix::fs::getxattr(path, attr, &mut *buf),
            Object::Named(path) => rustix::fs::lgetxattr(path, attr, &mut *buf),
        })
    };
    match read_sized::<256>(call) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of all attributes, each ended by a NUL byte; empty without support.
pub(crate) fn list(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let call = |buf: &mut [u8]| {
        on(dir, name, |object| match object {
            Object::Open(fd) => rustix::fs::flistxattr(fd, &mut *buf),
            Object::Handle(path) => rustix::fs::listxattr(path, &mut *buf),
            Object::Named(path) => rustix::fs::llistxattr(path, &mut *buf),
        })
    };
    match read_sized::<512>(call) {
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        result => result,
    }
}

/// What `call` writes into a buffer: a small one first.
fn read_sized<const SMALL: usize>(
    mut call: impl FnMut(&mut [u8]) -> Result<usize>,
) -> Result<Vec<u8>> {
    let mut small = [0_u8; SMALL];
    match call(&mut small) {
        Ok(n) => Ok(small[..n].to_vec()),
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
    let flags = XattrFlags::from_bits_retain(flags);
    let set = change("setxattr", || {
        on(dir, name, |object| match object {
            Object::Open(fd) => rustix::fs::fsetxattr(fd, attr, value, flags),
            Object::Handle(path) => rustix::fs::setxattr(path, attr, value, flags),
            Object::Named(path) => rustix::fs::lsetxattr(path, attr, value, flags),
        })
    });
    settle(set, || {
        get(dir, name, attr).is_ok_and(|now| now.as_deref() == Some(value))
    })
}

/// Removes `attr`.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8]) -> Result<()> {
    let removed = change("removexattr", || {
        on(dir, name, |object| match object {
            Object::Open(fd) => rustix::fs::fremovexattr(fd, attr),
            Object::Handle(path) => rustix::fs::removexattr(path, attr),
            Object::Named(path) => rustix::fs::lremovexattr(path, attr),
        })
    });
    settle(removed, || get(dir, name, attr) == Ok(None))
}

/// Whether an open file carries one of `attrs`. Most files have no attributes at all, so they are
/// listed in one call.
pub(crate) fn has_any(fd: impl AsFd, attrs: &[&[u8]]) -> Result<bool> {
    let mut names = [0_u8; 1024];
    match rustix::fs::flistxattr(fd.as_fd(), &mut names) {
        Ok(len) => {
            let mut listed = names[..len].split(|&b| b == 0);
            return Ok(listed.any(|name| attrs.contains(&name)));
        }
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(false),
        // Too many to be listed at once, or not to be listed.
        Err(_) => {}
    }
    for attr in attrs {
        let mut none: [u8; 0] = [];
        match rustix::fs::fgetxattr(fd.as_fd(), *attr, &mut none) {
            Ok(_) => return Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
