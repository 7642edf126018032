//! `unionfs commit`: the changes of an upper become part of the directory below it.
//!
//! In three steps, each of which may be cut off at any call and is done again by the same command:
//!
//! 1. The upper is made to stand alone (`whole`): what it says about contents of the lowers, by
//!    pseudo-links, redirects and metacopy, is brought into it.
//! 2. The lower gets all that the upper says (`merge`). Whatever the upper has an opinion on is
//!    covered by it all the while, so the order of these calls does not show, and doing one twice
//!    does no harm.
//! 3. When that is on disk the upper is emptied (`drop_upper`): each entry of its root goes by one
//!    call, after which the lower's shows, which is the same.

mod drop_upper;
mod entry;
mod merge;
mod whole;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::Commit;
use crate::layer::record;
use crate::sys;

pub(super) use entry::give_dir;

use super::check::open;
use super::in_use::{self, Purpose};
use super::{Result, ToolError};

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Committed {
    /// Objects that the lower has from the upper now, directories not counted.
    pub objects: u64,
    /// Of these, those that were copied, not linked.
    pub copied: u64,
    /// Names that went from the lower, each with all that was below it.
    pub removed: u64,
}

/// Does what was asked; facts go to `out` if they were asked for.
///
/// # Errors
/// One line for the first thing that went wrong. The union shows the same as before then, and the
/// same command goes on from there.
pub fn commit(what: &Commit, out: &mut dyn Write) -> Result<()> {
    let done = commit_layers(what, true)?;
    if what.json {
        let Committed {
            objects,
            copied,
            removed,
        } = done;
        let facts = json!({ "objects": objects, "copied": copied, "removed": removed });
        writeln!(out, "{facts}").map_err(|e| ToolError::new(format_args!("writing: {e}")))?;
    }
    Ok(())
}

/// Both directories of a commit.
pub(super) struct Both {
    pub upper: Arc<OwnedFd>,
    pub lower: Arc<OwnedFd>,
    /// There are further layers below the lower, so it keeps whiteouts and opaque marks.
    pub is_layer: bool,
    /// Owners in the upper mean something.
    pub owners: bool,
}

/// The same without a word; without `owners` nothing gets another owner.
pub(super) fn commit_layers(what: &Commit, owners: bool) -> Result<Committed> {
    let both = Both {
        upper: open(&what.upper)?,
        lower: open(&what.lower)?,
        is_layer: !what.below.is_empty(),
        owners,
    };
    check_apart(&both, what)?;
    let lock = |root, path| in_use::lock(root, path, Purpose::Merge);
    let lower_lock = lock(&both.lower, &what.lower)?;
    let upper_lock = lock(&both.upper, &what.upper)?;
    check_records(&both, what)?;
    let survey = whole::survey(&both)?;
    if survey.leans {
        // The union that is opened for that takes the lock itself.
        drop(upper_lock);
        whole::make_whole(what, &survey)?;
    } else {
        drop(upper_lock);
    }
    let upper_lock = lock(&both.upper, &what.upper)?;
    let done = merge::merge(&both, survey.entries)?;
    let synced = sys::fd::reopen_dir(&*both.lower).and_then(sys::file::sync_filesystem);
    synced.map_err(|e| at(&what.lower, e))?;
    drop_upper::drop_upper(&both.upper).map_err(|e| at(&what.upper, e))?;
    drop((upper_lock, lower_lock));
    Ok(done)
}

fn at(path: &Path, errno: sys::Errno) -> ToolError {
    ToolError::at(path.as_os_str().as_bytes(), errno)
}

/// A directory cannot go into itself, nor into one that is in it.
fn check_apart(both: &Both, what: &Commit) -> Result<()> {
    let number = |fd: &OwnedFd| sys::stat::fstat(fd).map(|stat| (stat.dev, stat.ino));
    let (upper, lower) = (number(&both.upper), number(&both.lower));
    let upper = upper.map_err(|e| at(&what.upper, e))?;
    let lower = lower.map_err(|e| at(&what.lower, e))?;
    if upper == lower || ancestors(&both.lower).contains(&upper) {
        let (upper, lower) = (what.upper.display(), what.lower.display());
        return Err(ToolError::new(format_args!(
            "{lower}: is {upper} or inside it"
        )));
    }
    Ok(())
}

/// Device and number of a directory and of all those above it.
fn ancestors(dir: &OwnedFd) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let Ok(path) = sys::fd::real_path(dir) else {
        return found;
    };
    for path in path.ancestors() {
        let there = sys::at::open_root(path.as_os_str().as_bytes()).and_then(sys::stat::fstat);
        if let Ok(stat) = there {
            found.push((stat.dev, stat.ino));
        }
    }
    found
}

/// Owners that are kept in records mean nothing where they are not looked at.
fn check_records(both: &Both, what: &Commit) -> Result<()> {
    let records = |dir: &OwnedFd, path: &Path| {
        let names = sys::xattr::list(dir.as_fd(), b"").map_err(|e| at(path, e))?;
        let mut names: Vec<Vec<u8>> = names
            .split(|&b| b == 0)
            .filter(|attr| record::is_record(attr) && attr.ends_with(b"override_stat"))
            .map(<[u8]>::to_vec)
            .collect();
        names.sort();
        Ok(names)
    };
    let upper = records(&both.upper, &what.upper)?;
    if upper != records(&both.lower, &what.lower)? {
        let lower = what.lower.display();
        return Err(ToolError::new(format_args!(
            "{lower}: keeps owners in another way than the upper (attribute override_stat of its \
             root directory)"
        )));
    }
    Ok(())
}
