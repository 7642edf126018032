//! What a mount is asked to be: plain data, and the `-o` text it comes from. No I/O.

mod grammar;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use grammar::{quote, quote_path};

use grammar::Field;

/// The second half of the filesystem type: a mount shows as `fuse.unionfs`.
pub const SUBTYPE: &str = "unionfs";

/// The device name a mount shows when none is given.
pub const DEFAULT_SOURCE: &str = "unionfs";

/// How many threads `threads=` may ask for.
pub const THREADS: RangeInclusive<usize> = 1..=64;

/// The dialect in which whiteouts and opaque markers are written to the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhiteoutForm {
    /// `.wh.NAME` and `.wh..wh..opq` files.
    #[default]
    Aufs,
    /// Character devices 0:0 and `overlay.opaque` xattrs.
    Overlay,
}

/// The flags of the mount itself, which the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct KernelFlags {
    /// Set-user-id bits and file capabilities have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Reading does not change access times.
    pub noatime: bool,
    /// Directory changes are synchronous.
    pub dirsync: bool,
    /// All writes are synchronous.
    pub sync: bool,
}

/// Everything a mount is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The read-only layers, top first; never empty after [`parse`].
    pub lowers: Vec<PathBuf>,
    /// The layer that takes changes.
    pub upper: Option<PathBuf>,
    /// Where temporary objects are made; on the filesystem of the upper.
    pub work: Option<PathBuf>,
    /// The dialect written to the upper.
    pub whiteout: WhiteoutForm,
    /// No changes are taken: asked for, or there is no upper.
    pub read_only: bool,
    /// fsync does nothing: faster, and a crash may lose everything written.
    pub volatile: bool,
    /// How many threads serve requests; `None`: decided at mount.
    pub threads: Option<usize>,
    /// The device name shown in /proc/mounts.
    pub source: Option<OsString>,
    /// Whether other users may enter the mount; `None`: decided at mount.
    pub allow_other: Option<bool>,
    /// The flags of the mount itself.
    pub kernel_flags: KernelFlags,
    /// The log filter: a level, or a list of `target=level`.
    pub log: Option<String>,
    /// Where the log goes instead of stderr or syslog.
    pub log_file: Option<PathBuf>,
    /// Words nobody knows, as they were given; each deserves one warning.
    pub ignored: Vec<OsString>,
}

/// Why an `-o` text cannot be used. Always one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is nothing to show.
    #[error("option lowerdir: missing, at least one lower directory is needed")]
    NoLower,
    /// The option is a word without its value, or the value is empty.
    #[error("option {option}: needs a value, {expected}")]
    NeedsValue {
        /// The option's name.
        option: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The value is none of those the option knows.
    #[error("option {option}: '{value}' is not {expected}")]
    BadValue {
        /// The option's name.
        option: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// One part of `lowerdir=` is empty.
    #[error("option lowerdir: part {part} of the list is empty (\\: writes a colon)")]
    EmptyPart {
        /// Which part, counted from 1.
        part: usize,
    },
    /// A value begins with a double quote and nothing ends it.
    #[error("option {option}: the double quote is never closed")]
    OpenQuote {
        /// The option's name.
        option: String,
    },
    /// There is text between the closing quote and the next comma.
    #[error("option {option}: text after the closing double quote")]
    AfterQuote {
        /// The option's name.
        option: String,
    },
    /// The option would need what only mount(8) or the kernel can do.
    #[error("option remount: a running mount is changed by mount -i -o remount, not by unionfs")]
    Remount,
}

/// Bytes from outside as text for a message: one line, whatever they are.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Reads the values of all `-o` in their order; where two disagree the later one counts.
///
/// Relative paths stay relative, see [`Options::make_absolute`].
///
/// # Errors
/// When a known option has a value it cannot have, or there is no `lowerdir=`.
pub fn parse(raw: &[OsString]) -> Result<Options, OptionError> {
    let mut options = Options::default();
    for text in raw {
        for field in grammar::fields(text.as_bytes())? {
            options.apply(field)?;
        }
    }
    if options.lowers.is_empty() {
        return Err(OptionError::NoLower);
    }
    options.read_only |= options.upper.is_none();
    Ok(options)
}

impl Options {
    /// The device name to show.
    #[must_use]
    pub fn source(&self) -> &OsStr {
        self.source.as_deref().unwrap_or(OsStr::new(DEFAULT_SOURCE))
    }

    /// Puts `base` in front of every relative path.
    pub fn make_absolute(&mut self, base: &Path) {
        let others = [&mut self.upper, &mut self.work, &mut self.log_file];
        for path in self.lowers.iter_mut().chain(others.into_iter().flatten()) {
            // `join` keeps a path that is absolute already.
            *path = base.join(&*path);
        }
    }

    /// True when [`Options::make_absolute`] would change something.
    #[must_use]
    pub fn has_relative_paths(&self) -> bool {
        let others = [&self.upper, &self.work, &self.log_file];
        self.lowers
            .iter()
            .chain(others.into_iter().flatten())
            .any(|path| path.is_relative())
    }

    fn apply(&mut self, field: Field<'_>) -> Result<(), OptionError> {
        let known = match field.value {
            Some(_) => self.apply_value(field)?,
            None => self.apply_word(field.name)?,
        };
        if !known {
            self.ignored.push(OsString::from_vec(field.text.to_vec()));
        }
        Ok(())
    }

    /// `name=value`; false when the name is not known.
    fn apply_value(&mut self, field: Field<'_>) -> Result<bool, OptionError> {
        let value = Value {
            option: field.name,
            raw: field.value.unwrap_or_default(),
        };
        match field.name {
            b"lowerdir" => self.lowers = value.paths()?,
            b"upperdir" => self.upper = Some(value.path()?),
            b"workdir" => self.work = Some(value.path()?),
            b"whiteout" => self.whiteout = value.choose(&WHITEOUT_FORMS, EXPECTED_WHITEOUT)?,
            b"fsync" => self.volatile = value.choose(&[("0", true), ("1", false)], "0 or 1")?,
            b"threads" => self.threads = Some(value.number(THREADS, EXPECTED_THREADS)?),
            b"fsname" => self.source = Some(value.text()?),
            b"log" => self.log = Some(value.utf8()?),
            b"log_file" => self.log_file = Some(value.path()?),
            name => return Ok(quiet_value(name)),
        }
        Ok(true)
    }

    /// A word without a value; false when it is not known.
    fn apply_word(&mut self, word: &[u8]) -> Result<bool, OptionError> {
        let flags = &mut self.kernel_flags;
        let (flag, value) = match word {
            b"ro" => (&mut self.read_only, true),
            b"rw" => (&mut self.read_only, false),
            b"volatile" => (&mut self.volatile, true),
            b"allow_other" => (self.allow_other.insert(true), true),
            b"noallow_other" => (self.allow_other.insert(false), false),
            b"nosuid" => (&mut flags.nosuid, true),
            b"suid" => (&mut flags.nosuid, false),
            b"nodev" => (&mut flags.nodev, true),
            b"dev" => (&mut flags.nodev, false),
            b"noexec" => (&mut flags.noexec, true),
            b"exec" => (&mut flags.noexec, false),
            b"noatime" => (&mut flags.noatime, true),
            b"atime" | b"relatime" | b"strictatime" => (&mut flags.noatime, false),
            b"dirsync" => (&mut flags.dirsync, true),
            b"sync" => (&mut flags.sync, true),
            b"async" => (&mut flags.sync, false),
            b"remount" => return Err(OptionError::Remount),
            _ => {
                return match needs_value(word) {
                    Some(expected) => Err(OptionError::NeedsValue {
                        option: shown(word),
                        expected,
                    }),
                    None => Ok(quiet_word(word)),
                };
            }
        };
        *flag = value;
        Ok(true)
    }
}

const WHITEOUT_FORMS: [(&str, WhiteoutForm); 2] = [
    ("aufs", WhiteoutForm::Aufs),
    ("overlay", WhiteoutForm::Overlay),
];
const EXPECTED_WHITEOUT: &str = "aufs or overlay";
const EXPECTED_THREADS: &str = "a number from 1 to 64";
const EXPECTED_PATH: &str = "a directory";

/// What the value of an option should be, for those that are nothing without one.
fn needs_value(name: &[u8]) -> Option<&'static str> {
    Some(match name {
        b"lowerdir" => "a list of directories with colons between them",
        b"upperdir" | b"workdir" => EXPECTED_PATH,
        b"whiteout" => EXPECTED_WHITEOUT,
        b"fsync" => "0 or 1",
        b"threads" => EXPECTED_THREADS,
        b"fsname" => "a name",
        b"log" => "a level such as info or debug",
        b"log_file" => "a file",
        _ => return None,
    })
}

/// Words with a value that are for others (the kernel's overlay, mount(8), fstab) and change
/// nothing here.
fn quiet_value(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 11] = [
        b"xino",
        b"redirect_dir",
        b"index",
        b"metacopy",
        b"nfs_export",
        b"uhelper",
        b"helper",
        b"comment",
        b"subtype",
        b"user_id",
        b"group_id",
    ];
    NAMES.contains(&name) || for_mount_tools(name)
}

/// The same for words without a value, and those that say what is always so.
fn quiet_word(word: &[u8]) -> bool {
    const WORDS: [&[u8]; 17] = [
        b"defaults",
        b"userxattr",
        b"default_permissions",
        b"auto",
        b"noauto",
        b"user",
        b"nouser",
        b"users",
        b"owner",
        b"group",
        b"nofail",
        b"_netdev",
        b"diratime",
        b"nodiratime",
        b"silent",
        b"loud",
        b"nolazytime",
    ];
    WORDS.contains(&word) || for_mount_tools(word)
}

/// fstab comments and the marks of systemd.
fn for_mount_tools(name: &[u8]) -> bool {
    name.starts_with(b"x-") || name.starts_with(b"X-")
}

/// A value on its way to what it means.
#[derive(Clone, Copy)]
struct Value<'a> {
    option: &'a [u8],
    raw: &'a [u8],
}

impl Value<'_> {
    fn path(self) -> Result<PathBuf, OptionError> {
        Ok(PathBuf::from(self.text()?))
    }

    fn paths(self) -> Result<Vec<PathBuf>, OptionError> {
        self.text()?;
        let parts = grammar::split_list(self.raw);
        if let Some(at) = parts.iter().position(|part| part.is_empty()) {
            return Err(OptionError::EmptyPart { part: at + 1 });
        }
        Ok(parts.into_iter().map(grammar::path).collect())
    }

    /// Any bytes but none.
    fn text(self) -> Result<OsString, OptionError> {
        if self.raw.is_empty() {
            let expected = needs_value(self.option).unwrap_or("not an empty one");
            return Err(OptionError::NeedsValue {
                option: shown(self.option),
                expected,
            });
        }
        Ok(OsString::from_vec(grammar::unescape(self.raw)))
    }

    fn utf8(self) -> Result<String, OptionError> {
        self.text()?.into_string().map_err(|_| self.bad("UTF-8"))
    }

    fn choose<T: Copy>(
        self, choices: &[(&str, T)], expected: &'static str,
    ) -> Result<T, OptionError> {
        let text = self.text()?;
        let chosen = choices.iter().find(|(name, _)| text == *name);
        chosen
            .map(|&(_, value)| value)
            .ok_or_else(|| self.bad(expected))
    }

    fn number(
        self, range: RangeInclusive<usize>, expected: &'static str,
    ) -> Result<usize, OptionError> {
        let text = self.text()?;
        let number = text.to_str().and_then(|text| text.parse().ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.bad(expected))
    }

    fn bad(self, expected: &'static str) -> OptionError {
        OptionError::BadValue {
            option: shown(self.option),
            value: shown(self.raw),
            expected,
        }
    }
}
