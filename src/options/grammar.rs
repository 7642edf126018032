//! The text of `-o`, on bytes: fields, quotes and escapes. No meaning yet.
//!
//! ```text
//! options = field *("," field)          empty fields are skipped
//! field   = name ["=" value]            for aufs's branch options also ":"
//! value   = bare / DQUOTE bare DQUOTE   in quotes a comma is an ordinary byte
//! escapes = "\:" "\\" "\," "\""         any other backslash stands for itself
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::error::{OptionError, shown};

/// aufs's options that may have a colon where others have `=`.
const COLON_OPTIONS: [&[u8]; 8] = [
    b"br", b"dirs", b"add", b"ins", b"append", b"prepend", b"del", b"mod",
];

/// One field of an `-o` text. The value has lost its quotes, but not its escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    /// All of it, as it was given.
    pub(super) text: &'a [u8],
    /// What stands before the first `=`.
    pub(super) name: &'a [u8],
    /// What stands after it, if there is one.
    pub(super) value: Option<&'a [u8]>,
}

/// Splits one `-o` text into its fields.
pub(super) fn fields(text: &[u8]) -> Result<Vec<Field<'_>>, OptionError> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (field, used) = field(rest)?;
        if used > 0 {
            found.push(field);
        }
        rest = rest.get(used + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// The first field of `text` and its length.
fn field(text: &[u8]) -> Result<(Field<'_>, usize), OptionError> {
    let name_len = name_len(text);
    let (name, rest) = text.split_at(name_len);
    match rest {
        [b'=' | b':', b'"', quoted @ ..] => {
            let len = unescaped(quoted, b'"').ok_or_else(|| OptionError::OpenQuote {
                option: shown(name),
            })?;
            let (value, after) = quoted.split_at(len);
            if !matches!(after, [b'"'] | [b'"', b',', ..]) {
                return Err(OptionError::AfterQuote {
                    option: shown(name),
                });
            }
            let used = name_len + 2 + len + 1;
            Ok((
                Field {
                    text: &text[..used],
                    name,
                    value: Some(value),
                },
                used,
            ))
        }
        [b'=' | b':', bare @ ..] => {
            let len = unescaped(bare, b',').unwrap_or(bare.len());
            let used = name_len + 1 + len;
            Ok((
                Field {
                    text: &text[..used],
                    name,
                    value: Some(&bare[..len]),
                },
                used,
            ))
        }
        _ => Ok((
            Field {
                text: name,
                name,
                value: None,
            },
            name_len,
        )),
    }
}

/// The length of the name at the beginning of `text`.
fn name_len(text: &[u8]) -> usize {
    for option in COLON_OPTIONS {
        if text
            .strip_prefix(option)
            .is_some_and(|rest| rest.starts_with(b":"))
        {
            return option.len();
        }
    }
    text.iter()
        .position(|&b| b == b'=' || b == b',')
        .unwrap_or(text.len())
}

/// Where `wanted` first stands without a backslash before it.
fn unescaped(text: &[u8], wanted: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            _ if byte == wanted => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// The parts of `value` between unescaped colons; at least one, each possibly empty.
pub(super) fn split_list(value: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = value;
    while let Some(at) = unescaped(rest, b':') {
        parts.push(&rest[..at]);
        rest = &rest[at + 1..];
    }
    parts.push(rest);
    parts
}

/// Takes the escapes out of a value.
pub(super) fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\\'
            && let Some(next) = bytes.next_if(|&next| special(next))
        {
            plain.push(next);
        } else {
            plain.push(byte);
        }
    }
    plain
}

/// The bytes that a backslash makes ordinary.
const fn special(byte: u8) -> bool {
    matches!(byte, b':' | b'\\' | b',' | b'"')
}

/// A value as a path, without its escapes.
pub(super) fn path(value: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(value)))
}

/// Writes a path so that it can stand in `-o`, alone or as one part of `lowerdir=`.
///
/// ```
/// use std::path::Path;
/// assert_eq!(unionfs::options::quote_path(Path::new("/a:b,c")), r"/a\:b\,c");
/// ```
#[must_use]
pub fn quote_path(path: &Path) -> OsString {
    quote(path.as_os_str())
}

/// Writes any value so that it can stand in `-o`.
#[must_use]
pub fn quote(value: &OsStr) -> OsString {
    let mut quoted = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if special(byte) {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    OsString::from_vec(quoted)
}
