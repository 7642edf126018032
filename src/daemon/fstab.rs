//! The name of a mount that /etc/fstab has as `unionfs#SOURCE`.
//!
//! libfuse's mount.fuse3 cuts such a field in two and starts us with SOURCE alone. But mount(8) knows
//! a line for mounted only when the mount shows the whole field, else each `mount -a` makes
//! another mount on top. So we look for the line that we may come from.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const FSTAB: &str = "/etc/fstab";

/// The first field of the line that mounts `source` at `mountpoint` (a path without symlinks) through
/// libfuse.
pub(super) fn name(source: Option<&OsStr>, mountpoint: &Path) -> Option<OsString> {
    // As libmount does; `mount -T FILE` is not seen.
    let path = std::env::var_os("LIBMOUNT_FSTAB").unwrap_or_else(|| FSTAB.into());
    // Whatever else a name from the environment leads to is not waited for.
    let text = std::fs::metadata(&path)
        .is_ok_and(|found| found.is_file())
        .then(|| std::fs::read(path).ok())??;
    let source = source.unwrap_or_default().as_bytes();
    candidates(&text, source)
        .find(|(_, place)| {
            place == mountpoint || place.canonicalize().is_ok_and(|p| p == mountpoint)
        })
        .map(|(field, _)| field)
}

/// The lines of the table `text` whose first field ends in `#SOURCE`: that field and the place.
fn candidates<'a>(
    text: &'a [u8], source: &'a [u8],
) -> impl Iterator<Item = (OsString, PathBuf)> + use<'a> {
    text.split(|&b| b == b'\n').filter_map(move |line| {
        let mut fields = line
            .split(|b| matches!(b, b' ' | b'\t'))
            .filter(|field| !field.is_empty());
        let (field, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        if !matches!(kind, b"fuse" | b"fuse3") || field.starts_with(b"#") {
            return None;
        }
        let field = crate::sys::mount::unescape(field);
        let cut = field.iter().position(|&b| b == b'#')?;
        let place = OsString::from_vec(crate::sys::mount::unescape(place));
        (field[cut + 1..] == *source).then(|| (OsString::from_vec(field), PathBuf::from(place)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_table() {
        let text = b"# unionfs#/a /m fuse x 0 0\n\
            /a /m fuse.unionfs x 0 0\n\
            \tunionfs#/a \t /m\\040n fuse ro 0 0\n\
            /usr/bin/unionfs#/a /o fuse3\n\
            unionfs#/a /p ext4 ro 0 0\n\
            unionfs# /q fuse dirs=/a\n\
            unionfs#/a";
        let found = |source: &str| {
            let all = candidates(text, source.as_bytes());
            all.map(|(field, place)| format!("{} {}", field.display(), place.display()))
                .collect::<Vec<_>>()
        };
        assert_eq!(found("/a"), ["unionfs#/a /m n", "/usr/bin/unionfs#/a /o"]);
        assert_eq!(found(""), ["unionfs# /q"]);
        assert_eq!(found("/b"), [""; 0]);
    }
}
