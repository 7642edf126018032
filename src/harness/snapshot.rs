//! Copies of uppers, and putting an upper back to what it was.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::name;
use crate::layer::private::is_private;
use crate::layer::{copy_tree, remove_tree};
use crate::sys::at::SetTime;
use crate::sys::{self, Errno, Stat};

use super::Error;

/// A copy of what a union had changed at a moment; it goes when this is dropped.
///
/// [`Union::restore`](super::Union::restore) brings a union back to it, and as it is a directory
/// like the upper, it can be a [lower](super::Builder::lower) of other unions: put it above
/// the lowers of the one it was taken of.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
}

impl AsRef<Path> for Snapshot {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Snapshot {
    /// The directory of the copy.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the directory `upper` to a new one in `parent`.
    pub(super) fn take(upper: &Path, parent: &Path) -> Result<Self, Error> {
        let snapshot = Self {
            path: make(upper, parent)?,
        };
        copy(upper, snapshot.path())?;
        Ok(snapshot)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let parts = (self.path.parent(), self.path.file_name());
        let (Some(parent), Some(name)) = parts else {
            return;
        };
        let removed = open(parent).and_then(|parent| {
            remove_tree::remove_tree(&*parent, name.as_bytes()).map_err(|e| at(&self.path, e))
        });
        if let Err(error) = removed {
            // A destructor has nobody else to tell.
            crate::daemon::complain(error);
        }
    }
}

fn at(path: &Path, errno: Errno) -> Error {
    let error = std::io::Error::from(errno);
    Error::new(format_args!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Result<Arc<OwnedFd>, Error> {
    let fd = sys::at::open_root(path.as_os_str().as_bytes());
    fd.map(Arc::new).map_err(|e| at(path, e))
}

/// A new directory, named after the upper.
fn make(upper: &Path, parent: &Path) -> Result<PathBuf, Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = OsString::from(".");
        // The name may not become too long.
        let of = upper.file_name().unwrap_or_default().as_bytes();
        name.push(String::from_utf8_lossy(&of[..of.len().min(60)]).as_ref());
        name.push(format!(".snapshot-{}-{number}", std::process::id()));
        let path = parent.join(name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                let reason = format_args!("{}: {e}", path.display());
                return Err(Error::with(reason, "name a directory by `snapshot_in`"));
            }
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    copy_tree::copy_tree(&open(from)?, &open(to)?).map_err(|(path, errno)| {
        let below = std::ffi::OsStr::from_bytes(&path);
        at(&from.join(below), errno)
    })
}

/// Makes the upper what the snapshot is. Nothing may be mounted with it.
pub(super) fn restore(upper: &Path, snapshot: &Snapshot) -> Result<(), Error> {
    clear(upper)?;
    copy(snapshot.path(), upper)
}

fn clear(upper: &Path) -> Result<(), Error> {
    remove_tree::empty_tree(&open(upper)?).map_err(|e| at(upper, e))
}

/// An upper as it was before the mount.
#[derive(Debug)]
pub(super) struct Pristine {
    /// It held no changes.
    pub empty: bool,
    stat: Stat,
    xattrs: HashMap<Vec<u8>, Vec<u8>>,
}

impl Pristine {
    /// Looks at an upper.
    pub fn of(upper: &Path) -> Result<Self, Error> {
        let dir = open(upper)?;
        let fail = |e| at(upper, e);
        let readable = sys::fd::reopen_dir(&*dir).map_err(fail)?;
        let mut empty = true;
        let look = sys::dir::for_each_entry(&readable, |entry| {
            // What holds temporaries and the inode of whiteouts say nothing.
            empty &= [name::WHITEOUT_BASE, name::ORPHANS].contains(&entry.name);
            Ok(())
        });
        look.map_err(fail)?;
        Ok(Self {
            empty,
            stat: sys::stat::fstat(&*dir).map_err(fail)?,
            xattrs: xattrs(dir.as_fd()).map_err(fail)?,
        })
    }

    /// True when its root directory shows the same as now.
    pub fn has_root_of(&self, upper: &Path) -> Result<bool, Error> {
        let now = Self::of(upper)?;
        let facts = |of: &Self| (of.stat.mode, of.stat.uid, of.stat.gid);
        let shown = |of: &Self| -> HashMap<Vec<u8>, Vec<u8>> {
            let all = of.xattrs.iter().filter(|(attr, _)| !is_private(attr));
            all.map(|(attr, value)| (attr.clone(), value.clone()))
                .collect()
        };
        Ok(facts(self) == facts(&now) && shown(self) == shown(&now))
    }

    /// Makes an empty upper so again. Nothing may be mounted with it.
    pub fn restore(&self, upper: &Path) -> Result<(), Error> {
        clear(upper)?;
        let dir = open(upper)?;
        self.give_attributes(dir.as_fd()).map_err(|e| at(upper, e))
    }

    fn give_attributes(&self, dir: BorrowedFd<'_>) -> sys::Result<()> {
        let stat = &self.stat;
        let has = sys::stat::fstat(dir)?;
        if (has.uid, has.gid) != (stat.uid, stat.gid) {
            sys::at::chown_at(dir, b"", Some(stat.uid), Some(stat.gid))?;
        }
        for attr in xattrs(dir)?.keys() {
            if !self.xattrs.contains_key(attr) {
                sys::xattr::remove(dir, b"", attr)?;
            }
        }
        for (attr, value) in &self.xattrs {
            sys::xattr::set(dir, b"", attr, value, 0)?;
        }
        sys::at::chmod_at(dir, b"", stat.mode)?;
        let (atime, mtime) = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
        sys::at::utimens_at(dir, b"", atime, mtime)
    }
}

fn xattrs(dir: BorrowedFd<'_>) -> sys::Result<HashMap<Vec<u8>, Vec<u8>>> {
    let list = sys::xattr::list(dir, b"")?;
    let mut all = HashMap::new();
    for attr in copy_tree::names(&list) {
        if let Some(value) = sys::xattr::get(dir, b"", attr)? {
            all.insert(attr.to_vec(), value);
        }
    }
    Ok(all)
}
