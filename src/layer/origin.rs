//! The inode number that a copy in the upper keeps from its origin.
//!
//! A copy carries the st_ino that it had when it was copied up, and its own real inode number, so
//! that a record which was itself copied (cp -a of an upper) counts for nothing. A directory of the
//! upper that may hold such copies carries a mark; elsewhere no one looks for records.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, Result};

use super::ability::set_record;

/// Records of a copy; where the first may not be written, the second.
pub(crate) const INO_ATTRS: [&[u8]; 2] = [b"trusted.unionfs.ino", b"user.unionfs.ino"];
/// Marks of a directory with copies.
pub(crate) const COPIES_ATTRS: [&[u8]; 2] = [b"trusted.unionfs.copies", b"user.unionfs.copies"];

/// Records `ino` on the object `name` of `dir`, whose real inode number is `real`. Where no
/// attribute can be had (a symlink of an ordinary user's mount, say), nothing is kept; returns
/// whether it is.
pub(crate) fn record(dir: BorrowedFd<'_>, name: &[u8], ino: u64, real: u64) -> Result<bool> {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&ino.to_le_bytes());
    value[8..].copy_from_slice(&real.to_le_bytes());
    set_first(dir, name, INO_ATTRS, &value)
}

/// The recorded number of the object `name` of `dir`, whose real inode number is `real`.
pub(crate) fn recorded(dir: BorrowedFd<'_>, name: &[u8], real: u64) -> Result<Option<u64>> {
    let value = get_first(dir, name, INO_ATTRS)?;
    Ok(value.and_then(|value| parse(&value, real)))
}

/// The value of the first of two attributes that is there and may be read.
pub(super) fn get_first(
    dir: BorrowedFd<'_>, name: &[u8], attrs: [&[u8]; 2],
) -> Result<Option<Vec<u8>>> {
    for attr in attrs {
        match sys::xattr::get(dir, name, attr) {
            Ok(None) | Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => {}
            result => return result,
        }
    }
    Ok(None)
}

pub(crate) fn parse(value: &[u8], real: u64) -> Option<u64> {
    let (ino, own) = value.split_first_chunk::<8>()?;
    let own = u64::from_le_bytes(own.try_into().ok()?);
    let ino = u64::from_le_bytes(*ino);
    (own == real && ino > 1).then_some(ino)
}

/// Marks a directory as one that may hold copies.
pub(crate) fn mark(dir: BorrowedFd<'_>) -> Result<()> {
    set_first(dir, b"", COPIES_ATTRS, b"y").map(|_| ())
}

/// Sets the first of two attributes that may be set; false when neither may.
pub(super) fn set_first(
    dir: BorrowedFd<'_>, name: &[u8], attrs: [&[u8]; 2], value: &[u8],
) -> Result<bool> {
    match set_record(dir, name, attrs, value) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_well_formed_records_of_this_very_object_count() {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&77_u64.to_le_bytes());
        value[8..].copy_from_slice(&5_u64.to_le_bytes());
        assert_eq!(parse(&value, 5), Some(77));
        assert_eq!(parse(&value, 6), None);
        assert_eq!(parse(&value[..15], 5), None);
        assert_eq!(parse(b"", 5), None);
        value[..8].copy_from_slice(&1_u64.to_le_bytes());
        assert_eq!(parse(&value, 5), None);
    }
}
