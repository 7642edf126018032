//! What the fuzz targets have in common. Inputs are lines, so that the corpus can be read and written
//! by hand; words with a line break in them are left to the property tests.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The lines of an input, as the kernel would hand them to a program: without NUL.
pub fn lines(input: &[u8]) -> impl Iterator<Item = OsString> {
    let lines = input.split(|&byte| byte == b'\n' || byte == 0);
    lines.map(|line| OsString::from_vec(line.to_vec()))
}

/// True when `part` stands in `text`.
#[must_use]
pub fn contains(text: &OsStr, part: &[u8]) -> bool {
    text.as_bytes()
        .windows(part.len())
        .any(|window| window == part)
}

/// Whatever came in: an error is one line.
///
/// # Panics
/// When it is not, which is what fuzzing is for.
pub fn answer<T>(outcome: &Result<T, impl Display>) {
    if let Err(error) = outcome {
        let error = error.to_string();
        assert!(
            !error.is_empty() && !error.chars().any(char::is_control),
            "{error:?}"
        );
    }
}
