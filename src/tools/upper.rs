//! What an upper changes, told apart for programs: by comparing with the lowers what was copied up.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::mount;
use crate::options::Options;
use crate::sys::{self, Errno, FileKind};
use crate::union::{Attr, ROOT, Union};

use super::changes::{self, Before, Change, xattrs};
use super::place::Place;
use super::{Result, ToolError};

/// How a name differs from what the lowers have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Difference {
    Added,
    Modified,
    Metadata,
    Deleted,
    Opaque,
}

/// Bytes compared at a time.
const PIECE: usize = 1 << 17;

/// All differences that can be seen, ordered by path. Copies that are as they were in the lowers are none.
///
/// # Errors
/// One line for the first thing that went wrong.
pub(crate) fn differences(
    options: &Options, descriptors: usize,
) -> Result<Vec<(PathBuf, Difference)>> {
    let Some(upper) = &options.upper else {
        return Ok(Vec::new());
    };
    let open = |options: &Options| {
        mount::open_union_within(options, descriptors)
            .map_err(|e| ToolError::new(format_args!("{e}")))
    };
    let all = Options {
        work: None,
        read_only: true,
        ..options.clone()
    };
    let below = Options {
        upper: None,
        ..all.clone()
    };
    let path = upper.as_os_str().as_bytes();
    let place = Place {
        upper: sys::at::open_root(path).map_err(|e| ToolError::at(path, e))?,
        all: open(&all)?,
        below: match below.lowers.is_empty() {
            true => None,
            false => Some(open(&below)?),
        },
    };
    let mut told = Vec::new();
    for change in changes::find(&place)? {
        let found = difference(&place, &change).map_err(|e| ToolError::at(&change.path, e))?;
        if let Some(difference) = found {
            let path = PathBuf::from(OsString::from_vec(change.path));
            told.push((path, difference));
        }
    }
    Ok(told)
}

fn difference(place: &Place, change: &Change) -> sys::Result<Option<Difference>> {
    if !change.counts {
        return Ok(None);
    }
    let Some(now) = change.now else {
        return Ok(Some(Difference::Deleted));
    };
    let (before, below) = match (change.before, &place.below) {
        (Before::Nothing, _) | (_, None) => return Ok(Some(Difference::Added)),
        (Before::Replaced, _) => return Ok(Some(Difference::Opaque)),
        (Before::Something, Some(below)) => (look(below, &change.path)?, below),
    };
    let Some(before) = before else {
        return Ok(Some(Difference::Added));
    };
    compare((&place.all, now), (below, before))
}

/// What a union has at a path.
fn look(union: &Union, path: &[u8]) -> sys::Result<Option<(u64, Attr)>> {
    let mut found = (ROOT, union.getattr(ROOT)?);
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        match union.lookup(found.0, name)? {
            Some(entry) => found = (entry.id, entry.attr),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

type Node<'a> = (&'a Union, (u64, Attr));

fn compare(now: Node<'_>, before: Node<'_>) -> sys::Result<Option<Difference>> {
    let (new, old) = (&now.1.1.stat, &before.1.1.stat);
    let kind = new.kind();
    if kind != old.kind() || !holds_the_same(now, before)? {
        return Ok(Some(Difference::Modified));
    }
    // What is in a directory changes its time, and is told by itself.
    let dir = kind.is_dir();
    let same = (new.mode, new.uid, new.gid) == (old.mode, old.uid, old.gid)
        && (dir || new.mtime == old.mtime)
        && xattrs(now.0, now.1.0)? == xattrs(before.0, before.1.0)?;
    Ok((!same).then_some(Difference::Metadata))
}

/// True when the contents are the same. Both are of one type.
fn holds_the_same(now: Node<'_>, before: Node<'_>) -> sys::Result<bool> {
    let (new, old) = (&now.1.1.stat, &before.1.1.stat);
    match new.kind() {
        FileKind::Regular if new.size != old.size => Ok(false),
        FileKind::Regular => same_data((now.0, now.1.0), (before.0, before.1.0)),
        FileKind::Symlink => Ok(now.0.readlink(now.1.0)? == before.0.readlink(before.1.0)?),
        FileKind::CharDevice | FileKind::BlockDevice => Ok(new.rdev == old.rdev),
        FileKind::Directory | FileKind::Fifo | FileKind::Socket => Ok(true),
    }
}

fn same_data(a: (&Union, u64), b: (&Union, u64)) -> sys::Result<bool> {
    let mut pieces = (vec![0; PIECE], vec![0; PIECE]);
    let mut offset = 0;
    loop {
        let read = |(union, id): (&Union, u64), buffer: &mut [u8]| union.read(id, offset, buffer);
        let (n, m) = (read(a, &mut pieces.0)?, read(b, &mut pieces.1)?);
        if n != m || pieces.0[..n] != pieces.1[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        offset = u64::try_from(n).map_or(Err(Errno::OVERFLOW), |n| Ok(offset + n))?;
    }
}
