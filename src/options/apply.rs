//! From fields to [`Options`]: what each supported option does. Which options there are, and what
//! stands after their names, says the table.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::branches::{self, Branches, Style};
use super::error::{OptionError, shown};
use super::grammar::{self, Field};
use super::ownership;
use super::table::{self, Status, Takes};
use super::value::Value;
use super::{Allow, DataPath, Lower, Options, RenameDir, THREADS, Udba, WhiteoutForm};

/// The options read so far.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Reader {
    options: Options,
    ownership: ownership::Reader,
    branches: Branches,
    /// `lowerdir=` as it was given; `lowerdir+=` adds to the options alone.
    lowerdir: Option<Vec<PathBuf>>,
    chroot: Option<PathBuf>,
    unionfs_fuse: bool,
    /// Words that were written.
    allow_other: bool,
    allow_root: bool,
    suid: bool,
    /// The option just read, whose value may go on after a comma.
    before: Vec<u8>,
}

impl Reader {
    /// Reads one `-o` text.
    pub(super) fn read(&mut self, text: &OsStr) -> Result<(), OptionError> {
        for field in grammar::fields(text.as_bytes())? {
            self.apply(field)?;
        }
        Ok(())
    }

    /// What the mount is asked to be, with SOURCE as layers when no option names any.
    pub(super) fn finish(mut self, source: Option<&OsStr>) -> Result<Options, OptionError> {
        let source = source.filter(|source| !source.is_empty());
        if let Some(source) = source {
            self.take_source(source)?;
        }
        let mut options = self.options;
        options.source = options.source.or_else(|| source.map(OsStr::to_owned));
        options.ownership = self.ownership.finish()?;
        if options.remount {
            return Ok(options);
        }
        if self.allow_other && self.allow_root {
            return Err(OptionError::Contradicts {
                option: "allow_root".to_owned(),
                other: "allow_other".to_owned(),
            });
        }
        // A program of one owner that is shown as another's must not run with the rights of that.
        let others = options.shown.uid.or(options.shown.gid).is_some();
        options.kernel_flags.nosuid |= !self.suid && (others || options.ownership.squashes());
        if !self.branches.is_empty() {
            let other = match (&options.upper, options.lowers.is_empty()) {
                (Some(_), _) => Some("upperdir"),
                (None, false) => Some("lowerdir"),
                (None, true) => None,
            };
            if let Some(other) = other {
                return Err(OptionError::Contradicts {
                    option: self.branches.option().to_owned(),
                    other: other.to_owned(),
                });
            }
            self.branches.resolve(&mut options, self.unionfs_fuse)?;
        } else if options.lowers.is_empty() {
            return Err(OptionError::NoLower);
        }
        if let Some(root) = &self.chroot {
            enter(root, &mut options);
        }
        options.read_only |= options.upper.is_none();
        Ok(options)
    }

    /// A source that holds layers, when no option does. A word without `/` and `:` is only a name.
    fn take_source(&mut self, source: &OsStr) -> Result<(), OptionError> {
        let raw = source.as_bytes();
        let named = !self.branches.is_empty() || !self.options.lowers.is_empty();
        if named || self.options.remount || !(raw.contains(&b'/') || raw.contains(&b':')) {
            return Ok(());
        }
        let option: &[u8] = b"SOURCE";
        let value = Value { option, raw };
        if branches::has_permission(raw) {
            let parts = value.parts()?;
            let warnings = &mut self.options.warnings;
            return self
                .branches
                .set(option, &parts, Style::UnionfsFuse, warnings);
        }
        self.options.lowers = value.paths()?.into_iter().map(Lower::from).collect();
        Ok(())
    }

    fn apply(&mut self, field: Field<'_>) -> Result<(), OptionError> {
        if self.ownership.take(field)? {
            return Ok(());
        }
        let before = std::mem::take(&mut self.before);
        let Some(row) = table::find(field.name) else {
            if self.goes_on(&before, field)? {
                self.before = before;
                return Ok(());
            }
            self.options
                .ignored
                .push(OsString::from_vec(field.text.to_vec()));
            return Ok(());
        };
        let option = || shown(field.name);
        self.before = field.name.to_vec();
        // Only unionfs-fuse's users write these; its `dirs=` has rules of its own.
        self.unionfs_fuse |= matches!(field.name, b"cow" | b"hide_meta_files" | b"hide_meta_dir");
        match row.status {
            Status::Accepted => return Ok(()),
            Status::Refused => {
                return Err(OptionError::Refused {
                    option: option(),
                    why: row.text,
                });
            }
            Status::Supported => {}
        }
        match (row.takes, field.value) {
            (Takes::Value(expected), None) => {
                return Err(OptionError::NeedsValue {
                    option: option(),
                    expected: expected.to_owned(),
                });
            }
            (Takes::Nothing, Some(value)) => {
                return Err(OptionError::TakesNoValue {
                    option: option(),
                    value: shown(value),
                });
            }
            _ => {}
        }
        let value = field.value.map(|raw| Value {
            option: field.name,
            raw,
        });
        // Rows that say "supported" because it is always so have nothing to do.
        let _ = match value {
            Some(value) => {
                self.layer(value)?
                    || self.branch(value)?
                    || self.look(value)?
                    || self.record(value)?
                    || self.setting(value)?
            }
            None => self.word(field.name),
        };
        Ok(())
    }

    /// One more branch after a comma, as the fstab lines of Debian's unionfs-fuse have them
    /// (`cow,dirs=/u=rw,/l=ro`); false when the field is none.
    fn goes_on(&mut self, before: &[u8], field: Field<'_>) -> Result<bool, OptionError> {
        if !matches!(before, b"dirs" | b"br") || !field.text.starts_with(b"/") {
            return Ok(false);
        }
        let value = Value {
            option: before,
            raw: field.text,
        };
        let warnings = &mut self.options.warnings;
        self.branches
            .extend(before, &value.parts()?, false, warnings);
        Ok(true)
    }

    /// A plain word; false when it is none that does something.
    fn word(&mut self, word: &[u8]) -> bool {
        let options = &mut self.options;
        match word {
            b"ro" => options.read_only = true,
            b"rw" => options.read_only = false,
            b"volatile" => options.volatile = true,
            b"allow_other" => {
                self.allow_other = true;
                options.allow = Allow::Other;
            }
            b"allow_root" => {
                self.allow_root = true;
                options.allow = Allow::Root;
            }
            b"noallow_other" => options.allow = Allow::Owner,
            b"auto_unmount" => options.auto_unmount = true,
            b"supervise" => (options.supervise, options.supervise_auto) = (true, false),
            b"nosupervise" => (options.supervise, options.supervise_auto) = (false, false),
            b"direct_io" => options.direct_io = true,
            b"noxattrs" => options.no_xattrs = true,
            b"sum" => options.sum_statfs = true,
            b"nosum" | b"wsum" | b"statfs_omit_ro" => options.sum_statfs = false,
            b"remount" => options.remount = true,
            b"userxattr" => options.userxattr = true,
            b"debug" => options.log = Some("debug".to_owned()),
            b"ephemeral" => options.kernel_flags.noatime = true,
            _ => return self.options.identity.word(word) || self.kernel_flag(word),
        }
        true
    }

    fn kernel_flag(&mut self, word: &[u8]) -> bool {
        let flags = &mut self.options.kernel_flags;
        let (flag, value) = match word {
            b"nosuid" => (&mut flags.nosuid, true),
            b"suid" => {
                self.suid = true;
                (&mut flags.nosuid, false)
            }
            b"nodev" => (&mut flags.nodev, true),
            b"dev" => (&mut flags.nodev, false),
            b"noexec" => (&mut flags.noexec, true),
            b"exec" => (&mut flags.noexec, false),
            b"nosymfollow" => (&mut flags.nosymfollow, true),
            b"symfollow" => (&mut flags.nosymfollow, false),
            b"nodiratime" => (&mut flags.nodiratime, true),
            b"diratime" => (&mut flags.nodiratime, false),
            b"lazytime" => (&mut flags.lazytime, true),
            b"nolazytime" => (&mut flags.lazytime, false),
            b"dirsync" => (&mut flags.dirsync, true),
            b"sync" => (&mut flags.sync, true),
            b"async" => (&mut flags.sync, false),
            b"noatime" | b"relatime" | b"strictatime" => {
                (flags.noatime, flags.relatime, flags.strictatime) = (false, false, false);
                match word {
                    b"noatime" => (&mut flags.noatime, true),
                    b"relatime" => (&mut flags.relatime, true),
                    _ => (&mut flags.strictatime, true),
                }
            }
            b"atime" | b"nostrictatime" | b"norelatime" => {
                (flags.noatime, flags.relatime) = (false, false);
                (&mut flags.strictatime, false)
            }
            _ => return false,
        };
        *flag = value;
        true
    }

    fn layer(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        let options = &mut self.options;
        match value.option {
            b"lowerdir" => {
                let paths = value.paths()?;
                if self.lowerdir.as_ref().is_some_and(|known| *known != paths) {
                    return Err(twice(value.option, &options.lowers[0].path, &paths[0]));
                }
                if self.lowerdir.is_none() {
                    let lowers = paths.iter().map(Lower::from);
                    // One layer by `lowerdir+=` before it stays above.
                    options.lowers.extend(lowers);
                    self.lowerdir = Some(paths);
                }
            }
            b"lowerdir+" => options.lowers.push(value.path()?.into()),
            b"upperdir" => set_once(&mut options.upper, value)?,
            b"workdir" => set_once(&mut options.work, value)?,
            b"chroot" => set_once(&mut self.chroot, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn branch(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        let (name, warnings) = (value.option, &mut self.options.warnings);
        let branches = &mut self.branches;
        match name {
            b"br" | b"dirs" => branches.set(name, &value.parts()?, Style::Aufs, warnings)?,
            b"append" => branches.extend(name, &value.parts()?, false, warnings),
            b"prepend" => branches.extend(name, &value.parts()?, true, warnings),
            b"add" | b"ins" => branches.insert(name, &value.parts()?, warnings)?,
            b"del" => value.parts()?.iter().for_each(|part| branches.delete(part)),
            b"mod" => branches.modify(name, value.raw, warnings)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the mount and its objects show.
    fn look(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        const LAST_ID: u32 = u32::MAX - 1;
        const ID: &str = "an id from 0 to 4294967294";
        let options = &mut self.options;
        match value.option {
            b"fsname" => options.source = Some(value.text()?),
            b"umask" => {
                let mask = Some(value.octal()?);
                (options.shown.file_mask, options.shown.dir_mask) = (mask, mask);
            }
            b"fmask" => options.shown.file_mask = Some(value.octal()?),
            b"dmask" => options.shown.dir_mask = Some(value.octal()?),
            b"uid" => options.shown.uid = Some(value.number(0..=LAST_ID, ID)?),
            b"gid" => options.shown.gid = Some(value.number(0..=LAST_ID, ID)?),
            b"noxattrs" => {
                let number = value.number(0..=u32::MAX, "a number, 0 or 1")?;
                options.no_xattrs = number != 0;
            }
            b"subtype" => options.subtype = Some(value.subtype()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether overlayfs's records are written.
    fn record(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        let options = &mut self.options;
        match value.option {
            b"rename_dir" => {
                options.rename_dir = value.choose(&RENAME_DIR, "copy, redirect or exdev")?;
            }
            b"redirect_dir" => {
                options.rename_dir = value.choose(&REDIRECT_DIR, "on, off, follow or nofollow")?;
            }
            b"metacopy" => options.metacopy = value.choose(&ON_OFF, "on or off")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn setting(&mut self, value: Value<'_>) -> Result<bool, OptionError> {
        const BYTES: &str = "a number of bytes from 4096 to 1048576";
        let options = &mut self.options;
        match value.option {
            b"whiteout" => options.whiteout = value.choose(&WHITEOUT_FORMS, "aufs or overlay")?,
            b"diropq" => {
                let choices = [
                    ("a", true),
                    ("always", true),
                    ("w", false),
                    ("whiteouted", false),
                ];
                options.always_opaque = value.choose(&choices, "a or w")?;
            }
            b"fsync" | b"sync" => options.volatile = value.choose(&FSYNC, FSYNC_EXPECTED)?,
            b"udba" => options.udba = value.choose(&UDBA, "none, reval or notify")?,
            b"supervise" => {
                options.supervise_auto = value.choose(&[("auto", true)], "auto, or no value")?;
                options.supervise = false;
            }
            b"open" => {
                options.open = value.choose(&OPEN, "auto, passthrough, none or cached")?;
            }
            b"writeback" => {
                options.write_through = value.choose(&[("0", true), ("1", false)], "0 or 1")?;
            }
            b"threads" => {
                options.threads = Some(value.number(THREADS, "a number from 1 to 64")?);
            }
            b"timeout" => {
                let time = value.seconds()?;
                (options.cache.attr, options.cache.entry) = (time, time);
                options.cache.negative = time;
            }
            b"attr_timeout" => options.cache.attr = value.seconds()?,
            b"entry_timeout" => options.cache.entry = value.seconds()?,
            b"negative_timeout" => options.cache.negative = value.seconds()?,
            b"max_threads" => {
                options.threads =
                    Some(value.number(1..=usize::MAX, "a number, 1 or more")?.min(64));
            }
            b"max_read" => options.max_read = Some(value.number(4096..=1 << 20, BYTES)?),
            b"max_write" => options.max_write = Some(value.number(4096..=1 << 20, BYTES)?),
            b"context" | b"fscontext" | b"defcontext" | b"rootcontext" => {
                let label = value.text()?;
                if label.as_bytes().contains(&b'"') {
                    return Err(value.bad("a label, which has no double quotes in it"));
                }
                options.labels.push(OsString::from_vec(
                    [value.option, b"=\"", label.as_bytes(), b"\""].concat(),
                ));
            }
            b"verity" => {
                let promise = "off: digests are not checked here";
                value.choose(&[("off", ())], promise)?;
            }
            b"droplvl" => {
                let text = value.utf8()?;
                let level = text
                    .parse::<i8>()
                    .ok()
                    .filter(|level| (-9..=9).contains(level));
                let level = level.ok_or_else(|| value.bad("a level from -9 to 9"))?;
                options.kernel_flags.noatime |= level >= 1;
            }
            b"log" => options.log = Some(value.utf8()?),
            b"log_file" | b"debug_file" => options.log_file = Some(value.path()?),
            _ => return options.identity.setting(value),
        }
        Ok(true)
    }
}

const OPEN: [(&str, DataPath); 4] = [
    ("auto", DataPath::Auto),
    ("passthrough", DataPath::Passthrough),
    ("none", DataPath::NoOpen),
    ("cached", DataPath::Cached),
];

/// aufs has two words for the last, by what its kernel watches with.
const UDBA: [(&str, Udba); 4] = [
    ("none", Udba::None),
    ("reval", Udba::Reval),
    ("notify", Udba::Notify),
    ("fsnotify", Udba::Notify),
];

const FSYNC: [(&str, bool); 5] = [
    ("0", true),
    ("1", false),
    ("volatile", true),
    ("auto", false),
    ("strict", false),
];
const FSYNC_EXPECTED: &str = "0, 1, auto, strict or volatile";

const RENAME_DIR: [(&str, RenameDir); 3] = [
    ("copy", RenameDir::Copy),
    ("redirect", RenameDir::Redirect),
    ("exdev", RenameDir::Exdev),
];

/// What overlayfs cannot do without redirects, it leaves to copying too.
const REDIRECT_DIR: [(&str, RenameDir); 4] = [
    ("on", RenameDir::Redirect),
    ("off", RenameDir::Copy),
    ("follow", RenameDir::Copy),
    ("nofollow", RenameDir::Copy),
];

const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];

const WHITEOUT_FORMS: [(&str, WhiteoutForm); 2] = [
    ("aufs", WhiteoutForm::Aufs),
    ("overlay", WhiteoutForm::Overlay),
];

/// Takes a directory that may be named again, but not otherwise.
fn set_once(slot: &mut Option<PathBuf>, value: Value<'_>) -> Result<(), OptionError> {
    let path = value.path()?;
    if let Some(first) = slot.as_ref().filter(|&first| *first != path) {
        return Err(twice(value.option, first, &path));
    }
    *slot = Some(path);
    Ok(())
}

fn twice(option: &[u8], first: &std::path::Path, second: &std::path::Path) -> OptionError {
    OptionError::Twice {
        option: shown(option),
        first: shown(first.as_os_str().as_bytes()),
        second: shown(second.as_os_str().as_bytes()),
    }
}

/// unionfs-fuse's `chroot=`: all layers are below `root`.
fn enter(root: &std::path::Path, options: &mut Options) {
    let lowers = options.lowers.iter_mut().map(|lower| &mut lower.path);
    for path in lowers.chain(&mut options.upper).chain(&mut options.work) {
        *path = root.join(path.strip_prefix("/").unwrap_or(path));
    }
}
