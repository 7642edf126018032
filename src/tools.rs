//! Commands on layers that are not, or need not be, mounted.
//!
//! They read an upper by the readers of `layer` and `union`; nothing here knows a format of its own
//! but that of tar.

mod apply;
mod apply_object;
mod changes;
mod check;
mod check_walk;
mod commit;
mod convert;
mod convert_add;
mod diff;
mod in_use;
mod marks;
mod mend;
mod oci;
pub(crate) mod pax;
mod place;
mod progress;
mod run;
mod tar_layer;
pub(crate) mod tar_reader;
mod upper;

use std::io;

use crate::sys::Errno;

pub use apply::apply;
pub use check::check;
pub use commit::{Committed, commit};
pub use convert::convert;
pub use diff::diff;
pub use run::run;
pub(crate) use upper::{Difference, differences};

/// Why it could not be done. Always one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(String);

/// What every command gives.
pub type Result<T> = std::result::Result<T, ToolError>;

impl ToolError {
    fn new(text: impl std::fmt::Display) -> Self {
        let text = text.to_string();
        let one_line = text.chars().map(|c| if c.is_control() { '?' } else { c });
        Self(one_line.collect())
    }

    /// A failure at a path of a layer.
    fn at(path: &[u8], errno: Errno) -> Self {
        Self::about(path, io::Error::from(errno))
    }

    /// The same, in words.
    fn about(path: &[u8], text: impl std::fmt::Display) -> Self {
        Self::new(format_args!("{}: {text}", shown(path)))
    }
}

/// A path of a layer for a message; the root as a dot.
fn shown(path: &[u8]) -> String {
    match path {
        [] => ".".to_owned(),
        path => String::from_utf8_lossy(path).into_owned(),
    }
}

/// A path for a list, in which each line is one: the root as a dot, control characters as octal
/// numbers after a backslash, as are backslashes.
fn printed(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for &byte in if path.is_empty() { b"." } else { path } {
        match byte {
            b'\\' | 0..=0x1f | 0x7f => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(byte),
        }
    }
    text
}

/// A name below a path.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// `SOURCE_DATE_EPOCH` of the environment: no time in an archive shall be later.
fn latest_time() -> Result<Option<i64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let wrong = || ToolError::new("SOURCE_DATE_EPOCH: not a number of seconds");
    seconds.map(Some).ok_or_else(wrong)
}
