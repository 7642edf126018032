//! What a mount is asked to be: plain data, and the `-o` text it comes from. No I/O.

mod apply;
mod branches;
mod error;
mod grammar;
mod identity;
pub mod ownership;
pub mod table;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::OptionError;
pub use grammar::{quote, quote_path};
pub use identity::Identity;

use ownership::Ownership;

/// The second half of the filesystem type: a mount shows as `fuse.unionfs`.
pub const SUBTYPE: &str = "unionfs";

/// The device name a mount shows when none is given.
pub const DEFAULT_SOURCE: &str = "unionfs";

/// The FUSE protocol 7.N that is spoken, that of fuser.
pub const FUSE_MINOR: u32 = 40;

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

/// How a directory of which a lower has a part is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameDir {
    /// It is completed in the upper first, so that any tool can read the result.
    #[default]
    Copy,
    /// The upper says where the rest is, by overlayfs's redirect records.
    Redirect,
    /// Not at all: EXDEV.
    Exdev,
}

/// How data travel between the kernel and the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataPath {
    /// What is best and can be had.
    #[default]
    Auto,
    /// The kernel reads and writes the layers' files itself.
    Passthrough,
    /// The kernel opens files without asking.
    NoOpen,
    /// The kernel asks for each open.
    Cached,
}

/// What is done about changes that others make in the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Udba {
    /// Nothing: what is known is trusted for ever.
    #[default]
    None,
    /// What is known is looked at again after a while: [`CacheTimes`].
    Reval,
    /// Layers are watched.
    Notify,
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
    /// Symbolic links are not followed.
    pub nosymfollow: bool,
    /// Reading does not change access times.
    pub noatime: bool,
    /// Reading a directory does not change its access time.
    pub nodiratime: bool,
    /// Access times change as they do by default: a running mount gets that rule back.
    pub relatime: bool,
    /// Reading always changes access times.
    pub strictatime: bool,
    /// Times that changed are written back late.
    pub lazytime: bool,
    /// Directory changes are synchronous.
    pub dirsync: bool,
    /// All writes are synchronous.
    pub sync: bool,
}

/// A read-only layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lower {
    /// Its directory.
    pub path: PathBuf,
    /// Its whiteouts and opaque markers hide what is below, which is what everybody wants but who
    /// asks for aufs's plain `=ro`.
    pub whiteouts: bool,
}

impl<P: Into<PathBuf>> From<P> for Lower {
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            whiteouts: true,
        }
    }
}

/// How long the kernel may keep what it was told; `None`: without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheTimes {
    /// Attributes.
    pub attr: Option<Duration>,
    /// Names that are there.
    pub entry: Option<Duration>,
    /// Names that are not there.
    pub negative: Option<Duration>,
}

/// What every object shows instead of what it has, as libfuse's options of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Permission bits that a file does not show; it shows all others.
    pub file_mask: Option<u32>,
    /// The same for directories.
    pub dir_mask: Option<u32>,
}

/// Who may enter the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allow {
    /// All users when root mounts it, else the mounting user alone.
    #[default]
    Default,
    /// All users.
    Other,
    /// The mounting user and root.
    Root,
    /// The mounting user alone.
    Owner,
}

/// Everything a mount is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Options {
    /// The read-only layers, top first; never empty after [`parse`].
    pub lowers: Vec<Lower>,
    /// The layer that takes changes.
    pub upper: Option<PathBuf>,
    /// Where temporary objects are made; on the filesystem of the upper.
    pub work: Option<PathBuf>,
    /// The dialect written to the upper.
    pub whiteout: WhiteoutForm,
    /// Each whiteout file is an inode of its own, not a link to `.wh..wh.aufs`.
    pub separate_whiteouts: bool,
    /// Every new directory is marked opaque, even where nothing is below it.
    pub always_opaque: bool,
    /// No changes are taken: asked for, or there is no upper.
    pub read_only: bool,
    /// fsync does nothing: faster, and a crash may lose everything written.
    pub volatile: bool,
    /// How a directory of which a lower has a part is renamed.
    pub rename_dir: RenameDir,
    /// Changing the attributes of a large file of a lower copies none of its data.
    pub metacopy: bool,
    /// Overlayfs's records in `user.overlay.*` say where contents are, too, though the owner of a
    /// file may write them.
    pub userxattr: bool,
    /// How names and inode numbers of one file hold together.
    pub identity: Identity,
    /// How many threads serve requests; `None`: decided at mount.
    pub threads: Option<usize>,
    /// The device name shown in /proc/mounts.
    pub source: Option<OsString>,
    /// The second half of the filesystem type; `None`: [`SUBTYPE`].
    pub subtype: Option<OsString>,
    /// Who may enter the mount.
    pub allow: Allow,
    /// The mount goes away when its daemon dies, however it dies.
    pub auto_unmount: bool,
    /// A second process keeps the mount when its daemon dies, and starts another.
    pub supervise: bool,
    /// The same where the kernel has what it takes.
    pub supervise_auto: bool,
    /// How owners and permissions are stored and shown.
    pub ownership: Ownership,
    /// The flags of the mount itself.
    pub kernel_flags: KernelFlags,
    /// How long the kernel keeps what it was told.
    pub cache: CacheTimes,
    /// What is done about changes behind the union's back.
    pub udba: Udba,
    /// Reads and writes go past the page cache.
    pub direct_io: bool,
    /// How data travel.
    pub open: DataPath,
    /// Where the kernel opens files without asking, it tells of each write at once.
    pub write_through: bool,
    /// Largest read request, in bytes; `None`: the kernel's choice.
    pub max_read: Option<u32>,
    /// Largest write request, in bytes; `None`: 1 MiB.
    pub max_write: Option<u32>,
    /// What every object shows instead of its own owner and permission bits.
    pub shown: Shown,
    /// Extended attributes are neither shown nor kept.
    pub no_xattrs: bool,
    /// Figures of statfs(2) add up over the filesystems of all layers.
    pub sum_statfs: bool,
    /// SELinux labels for the kernel: `context=` and its like, as they are.
    pub labels: Vec<OsString>,
    /// Change the flags of the mount that is there; mount nothing.
    pub remount: bool,
    /// The log filter: a level, or a list of `target=level`.
    pub log: Option<String>,
    /// Where the log goes instead of stderr or syslog.
    pub log_file: Option<PathBuf>,
    /// The upper may be inside a lower. No option says so: who sets it sees to it that the union is not
    /// asked for what is there.
    pub upper_inside: bool,
    /// Words nobody knows, as they were given; each deserves one warning.
    pub ignored: Vec<OsString>,
    /// What else deserves a warning, in whole lines.
    pub warnings: Vec<String>,
}

/// Reads the values of all `-o` in their order. Of two values for one option the later one counts,
/// but for those that name a layer: two that differ are an error.
///
/// Relative paths stay relative, see [`Options::make_absolute`].
///
/// # Errors
/// When a known option has a value it cannot have, two options contradict each other, or there is
/// no layer to show.
pub fn parse(raw: &[OsString]) -> Result<Options, OptionError> {
    parse_with_source(None, raw)
}

/// The same, with the word that stands before the mountpoint. It is the name the mount shows, and
/// when the options name no layers, it is them: a list as in `lowerdir=`, or branches as
/// unionfs-fuse has them (`/u=RW:/l=RO`).
///
/// # Errors
/// As [`parse`].
pub fn parse_with_source(source: Option<&OsStr>, raw: &[OsString]) -> Result<Options, OptionError> {
    let mut reader = apply::Reader::default();
    for text in raw {
        reader.read(text)?;
    }
    reader.finish(source)
}

impl Options {
    /// How long what the kernel knows holds: without end unless something is said, and a second with
    /// [`Udba::Reval`].
    #[must_use]
    pub fn cache_times(&self) -> CacheTimes {
        const REVAL: Duration = Duration::from_secs(1);
        let of = |time: Option<Duration>| match self.udba {
            Udba::Reval => Some(time.unwrap_or(REVAL)),
            _ => time,
        };
        CacheTimes {
            attr: of(self.cache.attr),
            entry: of(self.cache.entry),
            negative: of(self.cache.negative),
        }
    }

    /// The second half of the filesystem type.
    #[must_use]
    pub fn subtype(&self) -> &OsStr {
        self.subtype.as_deref().unwrap_or(OsStr::new(SUBTYPE))
    }

    /// The device name to show.
    #[must_use]
    pub fn source(&self) -> &OsStr {
        self.source.as_deref().unwrap_or(OsStr::new(DEFAULT_SOURCE))
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let others = [&mut self.upper, &mut self.work, &mut self.log_file];
        let lowers = self.lowers.iter_mut().map(|lower| &mut lower.path);
        lowers.chain(others.into_iter().flatten())
    }

    /// Puts `base` in front of every relative path.
    pub fn make_absolute(&mut self, base: &Path) {
        for path in self.paths() {
            // `join` keeps a path that is absolute already.
            *path = base.join(&*path);
        }
    }

    /// True when [`Options::make_absolute`] would change something.
    #[must_use]
    pub fn has_relative_paths(&mut self) -> bool {
        self.paths().any(|path| path.is_relative())
    }
}
