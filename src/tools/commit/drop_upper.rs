//! The last step: the upper is emptied. The lower has all of it, so each entry of the root goes by one
//! call without a change of what shows, times of the root apart while a call is under way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags};

use crate::layer::name::{self, NameBuf};
use crate::layer::opaque;
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::{keep_times, make_hidden_dir, move_to};
use crate::sys::{self, Errno, FileKind, Result};

/// Both among the upper's temporaries: a directory on its way out, and what [`begin`] writes.
const DROPPED: &[u8] = b".wh..wh.dropped";
const BEGUN: &[u8] = b".wh..wh.begun";

/// Removes everything from the upper.
pub(super) fn drop_upper(upper: &Arc<OwnedFd>) -> Result<()> {
    // First what makes a real entry hide the lower's.
    let (mut markers, mut objects, mut metadata) = (Vec::new(), Vec::new(), Vec::new());
    let readable = sys::fd::reopen_dir(&**upper)?;
    sys::dir::for_each_entry(&readable, |item| {
        let name = NameBuf::from_slice(item.name);
        if *name == *name::OPAQUE || name::hidden_by(&name).is_some() {
            markers.push(name);
        } else if !name::is_reserved(&name) {
            objects.push(name);
        } else if *name != *name::ORPHANS {
            metadata.push(name);
        }
        Ok(())
    })?;
    let temp = make_hidden_dir(upper, name::ORPHANS)?;
    begin(&temp)?;
    opaque::clear_all(upper.as_fd())?;
    for name in &markers {
        keep_times(upper, || unlink(upper, name))?;
    }
    // What an earlier attempt has put there.
    remove_tree(&temp, DROPPED)?;
    for name in &objects {
        if sys::stat::stat_at(upper, name)?.kind() != FileKind::Directory {
            keep_times(upper, || unlink(upper, name))?;
            continue;
        }
        keep_times(upper, || {
            let from = (upper.as_fd(), name.as_slice());
            move_to(from, (temp.as_fd(), DROPPED), RenameFlags::empty())
        })?;
        remove_tree(&temp, DROPPED)?;
    }
    for name in &metadata {
        keep_times(upper, || remove_tree(&**upper, name))?;
    }
    keep_times(upper, || remove_tree(&**upper, name::ORPHANS))
}

/// Says that nothing is missing in the lower. A mount that writes to the upper sweeps this away.
fn begin(temp: &OwnedFd) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match sys::at::open_at(temp, BEGUN, flags, 0o400, true) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// True when the lower had got everything, and the upper was not mounted since, by us at least: nothing
/// may hang on it but whether equal files are one file.
pub(super) fn has_begun(upper: &OwnedFd) -> bool {
    let temp = sys::at::open_dir_path(upper, name::ORPHANS, true);
    temp.is_ok_and(|temp| sys::stat::stat_at(&temp, BEGUN).is_ok())
}

fn unlink(upper: &OwnedFd, name: &[u8]) -> Result<()> {
    match sys::at::unlink_at(upper, name) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
