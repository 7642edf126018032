//! Overlayfs's records of where an object's contents are: `redirect` and `metacopy`.
//!
//! A redirect on a directory, or on a file whose data are elsewhere, says under which path the
//! layers below have the rest. It works like a symlink without permission checks into the other
//! layers, so only records of those who may write `trusted.*` count, unless the mount says that
//! `user.*` is as good.

use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::{self, Errno, Result};

use super::ability::set_record;
use super::name::{Name, NameBuf};

/// Kinds of record; the first name is the privileged one.
type Attrs = [&'static [u8]; 2];

pub(crate) const REDIRECT_ATTRS: Attrs = [b"trusted.overlay.redirect", b"user.overlay.redirect"];
const METACOPY_ATTRS: Attrs = [b"trusted.overlay.metacopy", b"user.overlay.metacopy"];

/// The header of a metacopy record with contents: version, length, flags, kind of digest.
const METACOPY_HEADER: usize = 4;
/// And with the longest digest.
const METACOPY_MAX: usize = METACOPY_HEADER + 64;

/// A record as it was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    pub value: Vec<u8>,
    /// It is in `user.*`, where the owner of the object may have written it.
    pub by_user: bool,
}

/// Where the layers below have the rest of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Redirect {
    /// Under another name in the same directory.
    Sibling(NameBuf),
    /// At this path from the root of the layers; never empty.
    Path(Vec<NameBuf>),
}

impl Redirect {
    /// Reads a record; `None` for one that leads nowhere or could lead out of a layer.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let component = |bytes: &[u8]| {
            let name = Name::new(bytes).ok().filter(|name| !name.is_reserved())?;
            Some(NameBuf::from_slice(name.bytes()))
        };
        match value.strip_prefix(b"/") {
            Some(path) => {
                let names = path.split(|&b| b == b'/').map(component);
                names.collect::<Option<Vec<_>>>().map(Self::Path)
            }
            None => component(value).map(Self::Sibling),
        }
    }
}

/// The record of one kind on the object `name` of `dir`.
fn read(dir: BorrowedFd<'_>, name: &[u8], attrs: Attrs) -> Result<Option<Record>> {
    for (attr, by_user) in attrs.into_iter().zip([false, true]) {
        let value = match sys::xattr::get(dir, name, attr) {
            Err(Errno::ACCESS | Errno::PERM) => None,
            result => result?,
        };
        if let Some(value) = value {
            return Ok(Some(Record { value, by_user }));
        }
    }
    Ok(None)
}

/// The redirect record of the object `name` of `dir`; an empty name means `dir` itself.
pub(crate) fn redirect(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Record>> {
    read(dir, name, REDIRECT_ATTRS)
}

/// The metacopy record of the object `name` of `dir`.
pub(crate) fn metacopy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Record>> {
    read(dir, name, METACOPY_ATTRS)
}

/// True when the data of an open file are not its own.
pub(crate) fn is_metacopy(file: impl AsFd) -> Result<bool> {
    sys::xattr::has_any(file, &METACOPY_ATTRS)
}

/// True for a metacopy record as overlayfs writes it: empty, or a header with a digest.
pub(crate) fn is_metacopy_record(value: &[u8]) -> bool {
    match value {
        [] => true,
        [version, len, ..] => {
            let sized = (METACOPY_HEADER..=METACOPY_MAX).contains(&value.len());
            *version == 0 && usize::from(*len) == value.len() && sized
        }
        [_] => false,
    }
}

/// Records `value` as the redirect of the object `name` of `dir`.
pub(crate) fn set_redirect(dir: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    set_record(dir, name, REDIRECT_ATTRS, value)
}

/// Records that the data of the object `name` of `dir` are in the layers below.
pub(crate) fn set_metacopy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    set_record(dir, name, METACOPY_ATTRS, b"")
}

fn remove(dir: BorrowedFd<'_>, name: &[u8], attrs: Attrs) -> Result<()> {
    for attr in attrs {
        match sys::xattr::remove(dir, name, attr) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes the redirect record of the object `name` of `dir`, if there is one.
pub(crate) fn clear_redirect(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove(dir, name, REDIRECT_ATTRS)
}

/// Says that the object `name` of `dir` holds all of its data now.
pub(crate) fn clear_metacopy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove(dir, name, METACOPY_ATTRS)?;
    // Nobody looks for it without the other, so it may as well stay.
    let _ = remove(dir, name, REDIRECT_ATTRS);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_name_a_sibling_or_a_path() {
        let name = |text: &str| NameBuf::from_slice(text.as_bytes());
        assert_eq!(
            Redirect::parse(b"old"),
            Some(Redirect::Sibling(name("old")))
        );
        let path = Redirect::Path(vec![name("a"), name("b")]);
        assert_eq!(Redirect::parse(b"/a/b"), Some(path));
    }

    #[test]
    fn redirects_cannot_lead_out_of_a_layer() {
        for value in [
            &b""[..],
            b"/",
            b"//",
            b"/a//b",
            b"/a/",
            b"/..",
            b"/a/../../b",
            b"..",
            b".",
            b"a/b",
            b"/a\0b",
            b"a\0",
            b"/.wh..wh.plnk",
            b".wh.x",
        ] {
            assert_eq!(Redirect::parse(value), None, "{}", value.escape_ascii());
        }
        assert_eq!(Redirect::parse(&[b'x'; 256]), None);
    }

    #[test]
    fn metacopy_records_are_empty_or_carry_a_digest() {
        assert!(is_metacopy_record(b""));
        assert!(is_metacopy_record(&[0, 4, 0, 0]));
        let mut digest = [0; 36];
        digest[1] = 36;
        assert!(is_metacopy_record(&digest));
        for value in [&[0][..], &[1, 4, 0, 0], &[0, 5, 0, 0], &[0, 69, 0]] {
            assert!(!is_metacopy_record(value));
        }
    }
}
