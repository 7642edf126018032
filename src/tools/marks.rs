//! All whiteouts and opaque marks of a layer, in every form.
//!
//! Those of unionfs-fuse are read here only: in a union of ours they count for nothing.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, NameBuf};
use crate::layer::{elsewhere, opaque, whiteout};
use crate::sys::{self, Errno, FileKind};

use super::progress::Progress;
use super::{Result, ToolError, join};

/// Where unionfs-fuse keeps its whiteouts, in directories of the layer's names.
pub(super) const HIDDEN_DIR: &[u8] = b".unionfs";
/// The same in its version 1.0 alone, which Debian has.
pub(super) const HIDDEN_DIR_1: &[u8] = b".unionfs-fuse";
/// Both.
const HIDDEN_DIRS: [&[u8]; 2] = [HIDDEN_DIR, HIDDEN_DIR_1];
/// What follows the hidden name there.
pub(super) const HIDDEN_TAG: &[u8] = b"_HIDDEN~";

/// How something is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// `.wh.NAME` or `.wh..wh..opq`.
    File,
    /// A character device 0:0.
    Device,
    /// An empty file with an attribute.
    Empty,
    /// This attribute of the directory.
    Attribute(&'static [u8]),
    /// `.../NAME_HIDDEN~` in this directory.
    Tagged(&'static [u8]),
}

/// What a mark says of a path.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    /// The lowers' object does not show.
    Hidden,
    /// Nothing shows through the directory.
    Opaque,
}

/// One mark.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The entry that makes it, or the directory with the attribute.
    pub path: Vec<u8>,
    pub form: Form,
    /// What it is about; `None` when it says nothing, as beside a file.
    pub about: Option<(Vec<u8>, Means)>,
    /// A whiteout file beside the directory that it makes opaque, which no other program reads so.
    pub is_beside: bool,
}

impl Mark {
    /// True for marks of unionfs-fuse.
    pub fn is_tagged(&self) -> bool {
        matches!(self.form, Form::Tagged(_))
    }
}

/// What a layer says.
#[derive(Default)]
pub(super) struct Found {
    pub marks: Vec<Mark>,
    /// Directories that hold marks of unionfs-fuse.
    pub tagged: Vec<&'static [u8]>,
    /// Those of them that hold something else too.
    pub mixed: Vec<&'static [u8]>,
    /// Some directory has its contents elsewhere.
    redirects: bool,
    /// Names that no other program than aufs takes for its own.
    pub leftovers: Vec<Vec<u8>>,
}

/// Opens a directory of the layer.
pub(super) fn open(root: &OwnedFd, path: &[u8]) -> sys::Result<OwnedFd> {
    let mut dir = sys::at::open_dir_path(root, b".", true)?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        dir = sys::at::open_dir_path(&dir, name, true)?;
    }
    Ok(dir)
}

/// All marks; with `whole` objects that have their contents elsewhere are an error.
pub(super) fn read(root: &Arc<OwnedFd>, whole: bool, progress: &Progress) -> Result<Found> {
    let mut found = Found::default();
    for top in HIDDEN_DIRS {
        let before = found.marks.len();
        let mut mixed = false;
        let mut pending = vec![top.to_vec()];
        while let Some(path) = pending.pop() {
            let read = read_tagged(root, top, &path, &mut found.marks, &mut pending);
            mixed |= read.map_err(|e| ToolError::at(&path, e))?;
        }
        if found.marks.len() > before {
            found.tagged.push(top);
            if mixed {
                found.mixed.push(top);
            }
        }
    }
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        read_dir(root, &path, whole, &mut found, &mut pending)?;
        progress.add(1);
    }
    drop_shadowed(&mut found);
    Ok(found)
}

/// Marks below what is hidden or opaque say nothing; overlayfs would list such whiteouts.
fn drop_shadowed(found: &mut Found) {
    let about = |mark: &Mark| mark.about.clone();
    let all: HashSet<(Vec<u8>, Means)> = found.marks.iter().filter_map(about).collect();
    let redirects = found.redirects;
    for mark in &mut found.marks {
        let Some((path, Means::Hidden)) = &mark.about else {
            continue;
        };
        let above = |means| {
            let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
            let mut above = slashes.map(|(at, _)| path[..at].to_vec());
            let is_root = means == Means::Opaque && all.contains(&(Vec::new(), means));
            is_root || above.any(|path| all.contains(&(path, means)))
        };
        // A redirected directory below an opaque one has parts of the lowers all the same.
        if above(Means::Hidden) || !redirects && above(Means::Opaque) {
            mark.about = None;
        }
    }
}

fn entries(dir: &OwnedFd) -> sys::Result<Vec<(NameBuf, FileKind)>> {
    let mut names = Vec::new();
    let readable = sys::fd::reopen_dir(dir)?;
    sys::dir::for_each_entry(&readable, |entry| {
        let kind = match entry.kind {
            Some(kind) => kind,
            None => sys::stat::stat_at(dir, entry.name)?.kind(),
        };
        names.push((NameBuf::from_slice(entry.name), kind));
        Ok(())
    })?;
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// What an object that has its contents in a lower cannot be converted for.
fn elsewhere_only(path: &[u8]) -> ToolError {
    ToolError::about(
        path,
        "has its contents in a lower, which only the overlay form can say; unionfs diff --tar with its \
         lowers, and unionfs apply --layer, make a layer that has all of its contents",
    )
}

fn read_dir(
    root: &Arc<OwnedFd>, path: &[u8], whole: bool, found: &mut Found, pending: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let fail = |e| ToolError::at(path, e);
    let dir = open(root, path).map_err(fail)?;
    let own = opaque::read(dir.as_fd()).map_err(fail)?;
    if whole && own.redirect.is_some() && !own.opaque {
        return Err(elsewhere_only(path));
    }
    found.redirects |= own.redirect.is_some();
    if own.opaque {
        for attr in opaque::attributes(dir.as_fd()).map_err(fail)? {
            found.marks.push(Mark {
                path: path.to_vec(),
                form: Form::Attribute(attr),
                about: Some((path.to_vec(), Means::Opaque)),
                is_beside: false,
            });
        }
    }
    for (name, kind) in entries(&dir).map_err(fail)? {
        let at = join(path, &name);
        if name::is_reserved(&name) {
            read_reserved(&dir, path, (&name, kind), own.xattr_whiteouts, found)?;
            continue;
        }
        if path.is_empty() && found.tagged.contains(&name.as_slice()) {
            continue;
        }
        if kind.is_dir() {
            pending.push(at);
            continue;
        }
        let entry = whiteout::entry(dir.as_fd(), &name, own.xattr_whiteouts);
        match entry.map_err(|e| ToolError::at(&at, e))? {
            whiteout::Entry::Whiteout => {
                let form = match kind {
                    FileKind::CharDevice => Form::Device,
                    _ => Form::Empty,
                };
                found.marks.push(Mark {
                    path: at.clone(),
                    form,
                    about: Some((at, Means::Hidden)),
                    is_beside: false,
                });
            }
            whiteout::Entry::Real(_) if whole && kind == FileKind::Regular => {
                let record = elsewhere::metacopy(dir.as_fd(), &name);
                if record.map_err(|e| ToolError::at(&at, e))?.is_some() {
                    return Err(elsewhere_only(&at));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// One name with the prefix of aufs.
fn read_reserved(
    dir: &OwnedFd, path: &[u8], (name, kind): (&[u8], FileKind), xattr_whiteouts: bool,
    found: &mut Found,
) -> Result<()> {
    let at = join(path, name);
    let (about, is_beside) = if name == name::OPAQUE && kind == FileKind::Regular {
        (Some((path.to_vec(), Means::Opaque)), false)
    } else if let Some(hidden) = name::hidden_by(name) {
        if kind != FileKind::Regular {
            let text = "has the name of a whiteout, but is no file; rename or remove it first";
            return Err(ToolError::about(&at, text));
        }
        let target = join(path, hidden);
        match whiteout::entry(dir.as_fd(), hidden, xattr_whiteouts) {
            Ok(whiteout::Entry::Real(stat)) if stat.kind().is_dir() => {
                (Some((target, Means::Opaque)), true)
            }
            Ok(whiteout::Entry::Real(_)) => (None, true),
            Ok(_) => (Some((target, Means::Hidden)), false),
            Err(e) => return Err(ToolError::at(&at, e)),
        }
    } else {
        let own = [name::WHITEOUT_BASE, name::ORPHANS, name::PSEUDO_LINKS];
        if !(path.is_empty() && own.contains(&name)) {
            found.leftovers.push(at);
        }
        return Ok(());
    };
    found.marks.push(Mark {
        path: at,
        form: Form::File,
        about,
        is_beside,
    });
    Ok(())
}

/// Reads a directory of such marks, of those below `top`; true when something else is in it.
fn read_tagged(
    root: &Arc<OwnedFd>, top: &'static [u8], path: &[u8], marks: &mut Vec<Mark>,
    pending: &mut Vec<Vec<u8>>,
) -> sys::Result<bool> {
    let mut mixed = false;
    let absent = |e: &Errno| matches!(*e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP);
    let dir = match open(root, path) {
        Err(e) if absent(&e) => return Ok(false),
        dir => dir?,
    };
    let shown = path.get(top.len() + 1..).unwrap_or_default();
    for (name, kind) in entries(&dir)? {
        let at = join(path, &name);
        if let Some(hidden) = name
            .strip_suffix(HIDDEN_TAG)
            .filter(|name| !name.is_empty())
        {
            let target = join(shown, hidden);
            let about = match open(root, shown) {
                Ok(above) => match whiteout::entry(above.as_fd(), hidden, false)? {
                    whiteout::Entry::Real(stat) if stat.kind().is_dir() => {
                        Some((target, Means::Opaque))
                    }
                    whiteout::Entry::Real(_) => None,
                    _ => Some((target, Means::Hidden)),
                },
                // Where the directory is only in a lower another form's mark has no place yet.
                Err(Errno::NOENT) => Some((target, Means::Hidden)),
                // Nothing shows below a file.
                Err(Errno::NOTDIR | Errno::LOOP) => None,
                Err(e) => return Err(e),
            };
            marks.push(Mark {
                path: at,
                form: Form::Tagged(top),
                about,
                is_beside: false,
            });
        } else if kind.is_dir() {
            pending.push(at);
        } else {
            mixed = true;
        }
    }
    Ok(mixed)
}
