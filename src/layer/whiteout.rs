//! What one layer's directory says about one name.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::name;
use super::opaque::is_xattr_whiteout;

/// The entry of that very name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// There is none.
    Nothing,
    /// A whiteout that stands at the name itself: a character device 0:0, or an empty file with
    /// overlayfs's attribute.
    Whiteout,
    /// An object.
    Real(Stat),
}

/// The entry `.wh.NAME` beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Marker {
    /// There is none.
    Nothing,
    /// A regular file: a whiteout.
    Whiteout,
    /// Something else, which no writer makes: the name cannot be answered for.
    Malformed,
}

/// Looks at the entry `name` of `dir`.
pub(crate) fn entry(dir: BorrowedFd<'_>, name: &[u8], xattr_whiteouts: bool) -> Result<Entry> {
    let stat = match sys::stat::stat_at(dir, name) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Entry::Nothing),
        Err(e) => return Err(e),
    };
    if stat.is_whiteout_device() {
        return Ok(Entry::Whiteout);
    }
    let candidate = xattr_whiteouts && stat.kind() == FileKind::Regular && stat.size == 0;
    if candidate && is_xattr_whiteout(dir, name)? {
        return Ok(Entry::Whiteout);
    }
    Ok(Entry::Real(stat))
}

/// Looks for the whiteout file of `name` in `dir`.
pub(crate) fn marker(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Marker> {
    let Some(marker) = name::whiteout_of(name) else {
        return Ok(Marker::Nothing);
    };
    match sys::stat::stat_at(dir, &marker) {
        Ok(stat) if stat.kind() == FileKind::Regular => Ok(Marker::Whiteout),
        Ok(_) => Ok(Marker::Malformed),
        Err(Errno::NOENT) => Ok(Marker::Nothing),
        Err(e) => Err(e),
    }
}
