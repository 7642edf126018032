//! Marks of a directory: opaque, holder of xattr whiteouts, redirected.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, FileKind, Result};

use super::elsewhere::{self, REDIRECT_ATTRS, Record};
use super::{name, origin};

/// What a layer's directory says about itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct DirMarks {
    /// An attribute says that nothing below this layer shows through; so may
    /// [a file](has_marker_file).
    pub opaque: bool,
    /// Empty regular files in it may be whiteouts (`overlay.opaque` = `x`).
    pub xattr_whiteouts: bool,
    /// Some of its objects may be copies that keep their origin's inode number.
    pub copies: bool,
    /// The layers below have the rest of it elsewhere.
    pub redirect: Option<Record>,
}

/// Attributes that make a directory opaque, of every writer that is read.
const OPAQUE_ATTRS: [&[u8]; 3] = [
    b"trusted.overlay.opaque",
    b"user.overlay.opaque",
    b"user.fuseoverlayfs.opaque",
];
/// setxattr(2): the attribute may not be there.
const CREATE: u32 = 1;
/// Attributes that make an empty file a whiteout, in a directory marked `x`.
const WHITEOUT_ATTRS: [&[u8]; 2] = [b"trusted.overlay.whiteout", b"user.overlay.whiteout"];

/// Reads the marks of the directory behind an O_PATH handle.
pub(crate) fn read(dir: BorrowedFd<'_>) -> Result<DirMarks> {
    let mut marks = DirMarks::default();
    let names = match sys::xattr::list(dir, b"") {
        Ok(names) => names,
        // Attributes that may not be read cannot be acted on; the entries themselves cannot be
        // read then either.
        Err(Errno::ACCESS | Errno::PERM) => Vec::new(),
        Err(e) => return Err(e),
    };
    for attr in names.split(|&b| b == 0) {
        if OPAQUE_ATTRS.contains(&attr) {
            match sys::xattr::get(dir, b"", attr)?.as_deref() {
                Some(b"y") => marks.opaque = true,
                Some(b"x") => marks.xattr_whiteouts = true,
                _ => {}
            }
        } else if REDIRECT_ATTRS.contains(&attr) && marks.redirect.is_none() {
            marks.redirect = elsewhere::redirect(dir, b"")?;
        } else if origin::COPIES_ATTRS.contains(&attr) {
            marks.copies = true;
        }
    }
    Ok(marks)
}

/// True when the directory holds a regular `.wh..wh..opq`.
pub(crate) fn has_marker_file(dir: BorrowedFd<'_>) -> Result<bool> {
    match sys::stat::stat_at(dir, name::OPAQUE) {
        Ok(stat) => Ok(stat.kind() == FileKind::Regular),
        Err(Errno::NOENT | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// True when the empty regular file `name` carries a whiteout attribute.
pub(crate) fn is_xattr_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    for attr in WHITEOUT_ATTRS {
        if sys::xattr::get(dir, name, attr)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Marks a directory opaque by attribute: overlayfs's own one, or where that needs rights that we
/// do not have, the one that overlayfs reads with `userxattr` and fuse-overlayfs always. Where it says
/// that the directory holds xattr whiteouts, which have to go on hiding, the next one is used.
pub(crate) fn set_attr(dir: BorrowedFd<'_>, entry: &[u8]) -> Result<()> {
    let mut result = Err(Errno::OPNOTSUPP);
    for attr in OPAQUE_ATTRS {
        result = match sys::xattr::set(dir, entry, attr, b"y", CREATE) {
            Err(Errno::EXIST) => match sys::xattr::get(dir, entry, attr)?.as_deref() {
                Some(b"x") => continue,
                Some(b"y") => return Ok(()),
                _ => sys::xattr::set(dir, entry, attr, b"y", 0),
            },
            result => result,
        };
        if !matches!(result, Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS)) {
            break;
        }
    }
    result
}

/// Removes the attributes that [`set_attr`] may have set.
pub(crate) fn clear_attr(dir: BorrowedFd<'_>, entry: &[u8]) -> Result<()> {
    for attr in OPAQUE_ATTRS {
        let is_set = match sys::xattr::get(dir, entry, attr) {
            Ok(value) => value.as_deref() == Some(b"y"),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => false,
            Err(e) => return Err(e),
        };
        if !is_set {
            continue;
        }
        match sys::xattr::remove(dir, entry, attr) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The attributes that make a directory opaque, of those that are read.
pub(crate) fn attributes(dir: BorrowedFd<'_>) -> Result<Vec<&'static [u8]>> {
    let mut found = Vec::new();
    for attr in OPAQUE_ATTRS {
        if sys::xattr::get(dir, b"", attr)?.as_deref() == Some(b"y") {
            found.push(attr);
        }
    }
    Ok(found)
}

/// Overlayfs's own attribute, for root's mounts.
pub(crate) const FOR_ROOT: &[u8] = OPAQUE_ATTRS[0];
/// The one that overlayfs reads with `userxattr`, and fuse-overlayfs always.
pub(crate) const FOR_USERS: &[u8] = OPAQUE_ATTRS[1];

/// Removes every attribute that makes a directory opaque; the one that says that it holds xattr
/// whiteouts stays.
pub(crate) fn clear_all(dir: BorrowedFd<'_>) -> Result<()> {
    for attr in OPAQUE_ATTRS {
        if sys::xattr::get(dir, b"", attr)?.as_deref() == Some(b"y") {
            sys::xattr::remove(dir, b"", attr)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_opaque_directory_goes_on_holding_xattr_whiteouts() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let fd = fd.as_fd();
        let mut said = 0;
        for attr in [FOR_ROOT, FOR_USERS] {
            if sys::xattr::set(fd, b"", attr, b"x", 0).is_err() {
                // Not by this user, or not on this filesystem.
                continue;
            }
            said += 1;
            set_attr(fd, b"").unwrap();
            let marks = read(fd).unwrap();
            assert!(marks.opaque && marks.xattr_whiteouts, "{marks:?}");
            set_attr(fd, b"").unwrap();
            clear_attr(fd, b"").unwrap();
            let marks = read(fd).unwrap();
            assert!(!marks.opaque && marks.xattr_whiteouts, "{marks:?}");
        }
        assert!(
            said > 0,
            "no attribute can be set in {}",
            dir.path().display()
        );
    }
}
