//! Names in a directory, and the names that the format reserves.

use smallvec::SmallVec;

use crate::sys::{Errno, Result};

/// Longest name of a directory entry on Linux, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// First bytes of every reserved name.
pub(crate) const PREFIX: &[u8] = b".wh.";
/// File that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// File at the upper's root to which whiteouts are hard links.
pub(crate) const WHITEOUT_BASE: &[u8] = b".wh..wh.aufs";
/// Directory at the upper's root for objects without a visible name.
pub(crate) const ORPHANS: &[u8] = b".wh..wh.orph";
/// Directory at the upper's root for pseudo-links.
pub(crate) const PSEUDO_LINKS: &[u8] = b".wh..wh.plnk";
/// First bytes of metadata and temporaries.
pub(crate) const META_PREFIX: &[u8] = b".wh..wh.";

/// A name on the stack.
pub(crate) type NameBuf = SmallVec<[u8; 64]>;

/// One path component as a caller gave it: 1 to 255 bytes, no slash, no NUL, not `.` or `..`.
///
/// All calls on layers take this type, so that no path can slip in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks a component.
    ///
    /// # Errors
    /// ENAMETOOLONG over 255 bytes; EINVAL for what is no component.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(Errno::INVAL);
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::INVAL);
        }
        Ok(Self(bytes))
    }

    /// Checks a component that is about to be made.
    ///
    /// # Errors
    /// As [`Name::new`], and EPERM for a reserved name: a marker made by a user would hide files.
    pub fn creatable(bytes: &'a [u8]) -> Result<Self> {
        let name = Self::new(bytes)?;
        if name.is_reserved() {
            Err(Errno::PERM)
        } else {
            Ok(name)
        }
    }

    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// True for `.wh.*`, which users neither see nor make.
    pub fn is_reserved(self) -> bool {
        is_reserved(self.0)
    }
}

/// True for `.wh.*`.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// The name of the whiteout of `name`; `None` where it would not fit in a directory entry.
pub(crate) fn whiteout_of(name: &[u8]) -> Option<NameBuf> {
    if PREFIX.len() + name.len() > NAME_MAX {
        return None;
    }
    let mut buf = NameBuf::from_slice(PREFIX);
    buf.extend_from_slice(name);
    Some(buf)
}

/// The name that the whiteout file `entry` hides; `None` when it is no whiteout of a name
/// (metadata, `.wh.` alone, or a stem that is no component).
pub(crate) fn hidden_by(entry: &[u8]) -> Option<&[u8]> {
    let stem = entry.strip_prefix(PREFIX)?;
    let valid = !stem.is_empty() && stem != b"." && stem != b".." && !is_reserved(stem);
    valid.then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_checked() {
        assert!(Name::new(b"a").is_ok());
        assert_eq!(Name::new(b""), Err(Errno::INVAL));
        assert_eq!(Name::new(b"."), Err(Errno::INVAL));
        assert_eq!(Name::new(b".."), Err(Errno::INVAL));
        assert_eq!(Name::new(b"a/b"), Err(Errno::INVAL));
        assert_eq!(Name::new(b"a\0b"), Err(Errno::INVAL));
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert_eq!(Name::new(&[b'x'; 256]), Err(Errno::NAMETOOLONG));
        assert!(Name::new(b"\xff\xfe").is_ok());
    }

    #[test]
    fn reserved_names_cannot_be_made() {
        for name in [&b".wh."[..], b".wh.x", b".wh..wh..opq", b".wh..wh.plnk"] {
            assert_eq!(Name::creatable(name), Err(Errno::PERM));
            assert!(Name::new(name).is_ok_and(Name::is_reserved));
        }
        assert!(Name::creatable(b".wh").is_ok());
        assert!(Name::creatable(b"a.wh.b").is_ok());
    }

    #[test]
    fn whiteout_names_fit_up_to_251_bytes() {
        assert_eq!(whiteout_of(b"f").as_deref(), Some(&b".wh.f"[..]));
        assert_eq!(whiteout_of(&[b'x'; 251]).map(|n| n.len()), Some(255));
        assert_eq!(whiteout_of(&[b'x'; 252]), None);
    }

    #[test]
    fn only_whiteouts_of_components_hide() {
        assert_eq!(hidden_by(b".wh.f"), Some(&b"f"[..]));
        for entry in [
            &b".wh."[..],
            b".wh..",
            b".wh...",
            b".wh..wh..opq",
            b".wh..wh.aufs",
            b"f",
        ] {
            assert_eq!(hidden_by(entry), None);
        }
    }
}
