//! Mending what `check` found. Each step leaves what shows as it was, so they may stop anywhere.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::layer::name;
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::keep_times;
use crate::layer::{opaque, origin};
use crate::sys::{self, Errno};

use super::check_walk::{Kind, Problem};
use super::{Result, ToolError};

/// Mends one problem of the upper at `root`; false when that is for a person to decide.
pub(super) fn mend(root: &OwnedFd, problem: &Problem) -> Result<bool> {
    let fail = |e| ToolError::at(&problem.path, e);
    let (parent, entry) = match problem.path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&problem.path[..at], &problem.path[at + 1..]),
        None => (&b""[..], problem.path.as_slice()),
    };
    let dir = open(root, parent).map_err(fail)?;
    try_mend(&dir, entry, &problem.kind).map_err(fail)
}

fn open(root: &OwnedFd, path: &[u8]) -> sys::Result<OwnedFd> {
    let mut dir = sys::at::open_dir_path(root, b".", true)?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        dir = sys::at::open_dir_path(&dir, name, true)?;
    }
    Ok(dir)
}

fn try_mend(dir: &OwnedFd, entry: &[u8], kind: &Kind) -> sys::Result<bool> {
    match kind {
        Kind::Malformed | Kind::AnotherUppers | Kind::OnlyPlink | Kind::PlinkNote => {
            return Ok(false);
        }
        // What they do is said by records that only root may see.
        Kind::HidesNothing | Kind::NeedlesslyOpaque | Kind::ForeignPlink
            if !sys::cred::is_real_root() =>
        {
            return Ok(false);
        }
        // Its other names may have been mended away since it was looked at.
        Kind::ForeignPlink if sys::stat::stat_at(dir, entry)?.nlink <= 1 => return Ok(false),
        Kind::Leftover => keep_times(dir, || remove_tree(dir, entry))?,
        Kind::NoName | Kind::HidesNothing | Kind::ForeignPlink | Kind::LeftPlinkRecord => {
            unlink(dir, entry)?;
        }
        Kind::Beside { make_opaque } => {
            let hidden = name::hidden_by(entry).filter(|_| *make_opaque);
            if let Some(hidden) = hidden {
                // Before its whiteout goes the directory has to hide the same by itself.
                let inner = sys::at::open_dir_path(dir, hidden, true)?;
                keep_times(&inner, || mark(&inner))?;
            }
            unlink(dir, entry)?;
        }
        Kind::NeedlesslyOpaque => {
            let own = match entry {
                [] => sys::at::open_dir_path(dir, b".", true)?,
                entry => sys::at::open_dir_path(dir, entry, true)?,
            };
            unlink(&own, name::OPAQUE)?;
            opaque::clear_all(own.as_fd())?;
        }
        Kind::ForeignRecord(attr) => clear(dir, entry, attr)?,
        Kind::CopiedRecord => {
            for attr in origin::INO_ATTRS {
                clear(dir, entry, attr)?;
            }
        }
    }
    Ok(true)
}

fn unlink(dir: &OwnedFd, name: &[u8]) -> sys::Result<()> {
    keep_times(dir, || match sys::at::unlink_at(dir, name) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    })
}

/// Makes a directory opaque by the file of the same form as its whiteout had.
fn mark(dir: &OwnedFd) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match sys::at::open_at(dir, name::OPAQUE, flags, 0o444, false) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

fn clear(dir: &OwnedFd, entry: &[u8], attr: &[u8]) -> sys::Result<()> {
    match sys::xattr::remove(dir.as_fd(), entry, attr) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}
