//! What the kernel may keep, for how long, and which way data take.

use std::time::Duration;

use fuser::{FileAttr, FopenFlags};

use crate::options::{Options, Shown};
use crate::sys::{Result, cred};
use crate::union::{Attr, Entry, Keep, Union, journal};

use super::convert::file_attr;
use super::handover::passes_through;
use super::io::{Choice, Way};
use super::probe;

/// Without end: caches of the kernel are kept until something that we do makes them wrong.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// For what may change without anybody knowing, as seldom as it does.
const SHORT: Duration = Duration::from_secs(1);
/// Not to be cached.
pub(crate) const NEVER: Duration = Duration::ZERO;

/// What the options say about the kernel's caches, and the way of data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// For attributes.
    pub attr: Duration,
    /// For names that are there.
    pub entry: Duration,
    /// For names that are not there.
    pub negative: Duration,
    /// How data travel.
    pub way: Way,
    /// close(2) may have errors to report.
    pub tells_at_close: bool,
    /// Attributes are neither shown nor kept.
    pub no_xattrs: bool,
    /// What changes in directories is on disk before it is answered.
    pub flushes_names: bool,
    shown: Shown,
}

impl Policy {
    /// What `options` ask for; which way data take is told to the log, and why.
    pub fn new(options: &Options, union: &Union) -> (Self, Choice) {
        let mut options = options.clone();
        // With writes that come late, the kernel never looks at our sizes and times.
        options.write_through |= union.changes_unheard();
        let options = &options;
        let begun = journal::active().and_then(|journal| journal.session());
        let choice = Choice::new(options, cred::is_real_root(), || match begun {
            // What was agreed on with the kernel holds as long as the mount.
            Some((_, answer)) if passes_through(&answer) => Ok(()),
            Some(_) => Err("it was not to be had when the mount was made".to_owned()),
            None => probe::passthrough(union),
        });
        choice.tell();
        let cache = options.cache_times();
        let or_forever = |time: Option<Duration>| time.unwrap_or(FOREVER).min(FOREVER);
        let policy = Self {
            attr: or_forever(cache.attr),
            entry: or_forever(cache.entry),
            negative: or_forever(cache.negative),
            way: choice.way,
            tells_at_close: union.tells_at_close(),
            no_xattrs: options.no_xattrs,
            // As for the kernel, which leaves it to filesystems.
            flushes_names: options.kernel_flags.dirsync || options.kernel_flags.sync,
            shown: options.shown,
        };
        (policy, choice)
    }

    /// Has names that were changed in these directories be on disk where the options ask for it.
    ///
    /// # Errors
    /// Of the change, or of writing to disk.
    pub fn settle<T>(&self, union: &Union, dirs: &[u64], changed: Result<T>) -> Result<T> {
        let changed = changed?;
        if self.flushes_names {
            for dir in dirs {
                union.fsync(*dir, 0, false)?;
            }
        }
        Ok(changed)
    }

    /// The same where an object was made: nobody knows it if it could not be settled.
    pub fn settle_made(&self, union: &Union, dir: u64, made: Result<Entry>) -> Result<Entry> {
        let made = made?;
        let settled = self.settle(union, &[dir], Ok(()));
        settled.inspect_err(|_| union.forget(made.id, 1))?;
        Ok(made)
    }

    /// The flags of a file that is opened through us.
    pub fn open_flags(&self, writes: bool) -> FopenFlags {
        let mut flags = self.way.open_flags();
        if !writes {
            // It will have nothing to report. (Where nobody has, FLUSH is not sent at all.)
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        flags
    }

    /// Attributes as fuser sends them, with `ino` in the place of the inode number.
    pub fn attributes(&self, attr: &Attr, ino: u64) -> FileAttr {
        let mut shown = file_attr(attr, ino);
        let mask = if attr.stat.kind().is_dir() {
            self.shown.dir_mask
        } else {
            self.shown.file_mask
        };
        if let Some(mask) = mask {
            #[allow(clippy::cast_possible_truncation)] // nine bits
            let bits = (0o777 & !mask) as u16;
            shown.perm = shown.perm & !0o777 | bits;
        }
        shown.uid = self.shown.uid.unwrap_or(shown.uid);
        shown.gid = self.shown.gid.unwrap_or(shown.gid);
        shown
    }

    /// How long the attributes that come with an entry hold. fuser takes the node id from them; a
    /// differing inode number is given by the GETATTR that follows.
    pub fn attr_of(&self, entry: &Entry) -> Duration {
        if entry.id == entry.attr.ino {
            self.attr_for(&entry.attr)
        } else {
            NEVER
        }
    }

    /// How long a name stands for what was found.
    pub fn entry_of(&self, entry: &Entry) -> Duration {
        match entry.attr.keep {
            Keep::Unwatched => self.entry.min(SHORT),
            _ => self.entry,
        }
    }

    /// How long there is no such name, of which others may make one unnoticed or not.
    pub fn negative_for(&self, may_keep: bool) -> Duration {
        if may_keep {
            self.negative
        } else {
            self.negative.min(SHORT)
        }
    }

    /// How long attributes hold.
    pub fn attr_for(&self, attr: &Attr) -> Duration {
        match attr.keep {
            Keep::Long => self.attr,
            Keep::Short | Keep::Unwatched => self.attr.min(SHORT),
            Keep::Not => NEVER,
        }
    }
}
