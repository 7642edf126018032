//! Options about what makes a file one file: its names and its inode number.

use super::error::OptionError;
use super::value::Value;

/// How names and inode numbers hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Identity {
    /// The names of one lower file part when one of them is copied up.
    pub noplink: bool,
    /// Every name gets its place in the upper at a clean unmount.
    pub flush_at_umount: bool,
    /// The mount is refused unless all layers have file handles, and so numbers that last.
    pub xino_on: bool,
    /// Only the lower 32 bits of inode numbers are shown.
    pub ino32: bool,
}

impl Identity {
    /// A plain word; false when it is none of these.
    pub(super) fn word(&mut self, word: &[u8]) -> bool {
        match word {
            b"plink" => self.noplink = false,
            b"noplink" => self.noplink = true,
            b"ino32_t" => self.ino32 = true,
            _ => return false,
        }
        true
    }

    /// A word with a value; false when it is none of these.
    pub(super) fn setting(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        match value.option {
            // Of aufs: a file for its table.
            b"xino" if value.raw.contains(&b'/') => {}
            b"xino" => {
                let choices = [("off", false), ("auto", false), ("on", true)];
                self.xino_on = value.choose(&choices, "off, auto or on")?;
            }
            b"plink_flush" => {
                let choices = [("umount", true), ("off", false)];
                self.flush_at_umount = value.choose(&choices, "umount or off")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
