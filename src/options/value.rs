//! The value of one option on its way to what it means.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{OptionError, shown};
use super::grammar;
use super::table::{self, Takes};

/// A value with its escapes, and the option it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) option: &'a [u8],
    pub(super) raw: &'a [u8],
}

impl Value<'_> {
    pub(super) fn path(self) -> Result<PathBuf, OptionError> {
        Ok(PathBuf::from(self.text()?))
    }

    /// The parts between colons, with their escapes.
    pub(super) fn parts(self) -> Result<Vec<Vec<u8>>, OptionError> {
        self.text()?;
        let parts = grammar::split_list(self.raw);
        if let Some(at) = parts.iter().position(|part| part.is_empty()) {
            return Err(OptionError::EmptyPart {
                option: shown(self.option),
                part: at + 1,
            });
        }
        Ok(parts.into_iter().map(<[u8]>::to_vec).collect())
    }

    pub(super) fn paths(self) -> Result<Vec<PathBuf>, OptionError> {
        let parts = self.parts()?;
        Ok(parts.iter().map(|part| grammar::path(part)).collect())
    }

    /// Any bytes but none.
    pub(super) fn text(self) -> Result<OsString, OptionError> {
        if self.raw.is_empty() {
            let expected = match table::find(self.option).map(|row| row.takes) {
                Some(Takes::Value(syntax) | Takes::Maybe(syntax)) => syntax,
                _ => "not an empty one",
            };
            return Err(OptionError::NeedsValue {
                option: shown(self.option),
                expected: expected.to_owned(),
            });
        }
        Ok(OsString::from_vec(grammar::unescape(self.raw)))
    }

    pub(super) fn utf8(self) -> Result<String, OptionError> {
        self.text()?.into_string().map_err(|_| self.bad("UTF-8"))
    }

    pub(super) fn choose<T: Copy>(
        self, choices: &[(&str, T)], expected: &str,
    ) -> Result<T, OptionError> {
        let text = self.text()?;
        let chosen = choices.iter().find(|(name, _)| text == *name);
        chosen
            .map(|&(_, value)| value)
            .ok_or_else(|| self.bad(expected))
    }

    /// A decimal number, written with digits only.
    pub(super) fn number<T>(
        self, range: RangeInclusive<T>, expected: &str,
    ) -> Result<T, OptionError>
    where
        T: std::str::FromStr + PartialOrd,
    {
        let text = self.text()?;
        let digits = text
            .to_str()
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse().ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.bad(expected))
    }

    /// Permission bits in octal.
    pub(super) fn octal(self) -> Result<u32, OptionError> {
        let text = self.text()?;
        let number = text
            .to_str()
            .filter(|text| text.bytes().all(|b| (b'0'..=b'7').contains(&b)))
            .and_then(|text| u32::from_str_radix(text, 8).ok());
        number
            .filter(|&bits| bits <= 0o777)
            .ok_or_else(|| self.bad("octal permission bits, at most 0777"))
    }

    /// The end of a filesystem type: a word that mount tables and fstab can hold.
    pub(super) fn subtype(self) -> Result<OsString, OptionError> {
        let text = self.utf8()?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if text.chars().all(good) && text.len() <= 64 {
            Ok(text.into())
        } else {
            Err(self.bad("a word of letters, digits, dots and dashes"))
        }
    }

    /// Seconds, possibly with a fraction; `None` when longer than anybody waits.
    pub(super) fn seconds(self) -> Result<Option<Duration>, OptionError> {
        const ENDLESS: f64 = 1e9;
        let bad = || self.bad("a number of seconds, 0 or more");
        let text = self.utf8()?;
        // "inf", "nan" and signs are numbers to Rust, but not times to anybody.
        if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(bad());
        }
        let seconds: f64 = text.parse().map_err(|_| bad())?;
        Ok((seconds < ENDLESS).then(|| Duration::from_secs_f64(seconds)))
    }

    pub(super) fn bad(self, expected: &str) -> OptionError {
        OptionError::BadValue {
            option: shown(self.option),
            value: shown(self.raw),
            expected: expected.to_owned(),
        }
    }
}
