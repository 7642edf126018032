//! What one layer's directory says about one name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::name::{self, NameBuf};
use super::opaque::is_xattr_whiteout;
use super::upper::keep_times;

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

/// Removes all whiteouts from an open directory, whose times stay.
pub(crate) fn clear(dir: &OwnedFd, xattr_whiteouts: bool) -> Result<()> {
    let mut found: Vec<NameBuf> = Vec::new();
    sys::dir::for_each_entry(dir, |item| {
        let may_be = match item.kind {
            None | Some(FileKind::CharDevice) => true,
            Some(FileKind::Regular) => xattr_whiteouts,
            Some(_) => false,
        };
        if name::hidden_by(item.name).is_some()
            || (may_be
                && matches!(
                    entry(dir.as_fd(), item.name, xattr_whiteouts)?,
                    Entry::Whiteout
                ))
        {
            found.push(NameBuf::from_slice(item.name));
        }
        Ok(())
    })?;
    if found.is_empty() {
        return Ok(());
    }
    keep_times(dir, || {
        found
            .iter()
            .try_for_each(|name| sys::at::unlink_at(dir, name))
    })
}
