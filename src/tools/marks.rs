//! All whiteouts and opaque marks of a layer, in every form.
//!
//! Those of unionfs-fuse are read here only: in a union of ours they count for nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, NameBuf};
use crate::layer::{elsewhere, opaque, whiteout};
use crate::sys::{self, Errno, FileKind};

use super::progress::Progress;
use super::{Result, ToolError, join};

/// Where unionfs-fuse keeps its whiteouts, in directories of the layer's names.
pub(super) const HIDDEN_DIR: &[u8] = b".unionfs";
/// What follows the hidden name there.
pub(super) const HIDDEN_TAG: &[u8] = b"_HIDDEN~";

/// How something is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `.wh.NAME` or `.wh..wh..opq`.
    File,
    /// A character device 0:0.
    Device,
    /// An empty file with an attribute.
    Empty,
    /// An attribute of the directory.
    Attribute,
    /// `.unionfs/.../NAME_HIDDEN~`.
    Tagged,
}

/// What a mark says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    about: Option<(Vec<u8>, Means)>,
    /// A whiteout file beside the directory that it makes opaque, which no other program reads so.
    pub is_beside: bool,
}

impl Mark {
    pub fn meaning(&self) -> Option<(Vec<u8>, Means)> {
        self.about.clone()
    }

    pub fn meaning_is(&self, path: &[u8], means: Means) -> bool {
        !self.is_beside
            && self
                .about
                .as_ref()
                .is_some_and(|(p, m)| p == path && *m == means)
    }
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
pub(super) fn read(root: &Arc<OwnedFd>, whole: bool, progress: &Progress) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        read_dir(root, &path, whole, &mut marks, &mut pending)?;
        progress.add(1);
    }
    let mut pending = vec![HIDDEN_DIR.to_vec()];
    while let Some(path) = pending.pop() {
        read_tagged(root, &path, &mut marks, &mut pending).map_err(|e| ToolError::at(&path, e))?;
    }
    Ok(marks)
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
        "has its contents in a lower, which only the overlay form can say",
    )
}

fn read_dir(
    root: &Arc<OwnedFd>, path: &[u8], whole: bool, marks: &mut Vec<Mark>,
    pending: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let fail = |e| ToolError::at(path, e);
    let dir = open(root, path).map_err(fail)?;
    let own = opaque::read(dir.as_fd()).map_err(fail)?;
    if whole && own.redirect.is_some() && !own.opaque {
        return Err(elsewhere_only(path));
    }
    let mut add = |entry: Vec<u8>, form, about, is_beside| {
        marks.push(Mark {
            path: entry,
            form,
            about,
            is_beside,
        });
    };
    if own.opaque {
        let about = Some((path.to_vec(), Means::Opaque));
        add(path.to_vec(), Form::Attribute, about, false);
    }
    for (name, kind) in entries(&dir).map_err(fail)? {
        let at = join(path, &name);
        if *name == *name::OPAQUE && kind == FileKind::Regular {
            add(at, Form::File, Some((path.to_vec(), Means::Opaque)), false);
            continue;
        }
        if let Some(hidden) = name::hidden_by(&name) {
            if kind != FileKind::Regular {
                return Err(ToolError::about(&at, "a whiteout that is no file"));
            }
            let target = join(path, hidden);
            let (about, beside) = match whiteout::entry(dir.as_fd(), hidden, own.xattr_whiteouts) {
                Ok(whiteout::Entry::Real(stat)) if stat.kind().is_dir() => {
                    (Some((target, Means::Opaque)), true)
                }
                Ok(whiteout::Entry::Real(_)) => (None, true),
                Ok(_) => (Some((target, Means::Hidden)), false),
                Err(e) => return Err(ToolError::at(&at, e)),
            };
            add(at, Form::File, about, beside);
            continue;
        }
        if name::is_reserved(&name) || (path.is_empty() && *name == *HIDDEN_DIR) {
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
                add(at.clone(), form, Some((at, Means::Hidden)), false);
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

fn read_tagged(
    root: &Arc<OwnedFd>, path: &[u8], marks: &mut Vec<Mark>, pending: &mut Vec<Vec<u8>>,
) -> sys::Result<()> {
    let dir = match open(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        dir => dir?,
    };
    let shown = path.get(HIDDEN_DIR.len() + 1..).unwrap_or_default();
    for (name, kind) in entries(&dir)? {
        let at = join(path, &name);
        if let Some(hidden) = name
            .strip_suffix(HIDDEN_TAG)
            .filter(|name| !name.is_empty())
        {
            let target = join(shown, hidden);
            let above = open(root, shown).ok();
            let real = above.map(|dir| whiteout::entry(dir.as_fd(), hidden, false));
            let about = match real {
                Some(Ok(whiteout::Entry::Real(stat))) if stat.kind().is_dir() => {
                    Some((target, Means::Opaque))
                }
                Some(Ok(whiteout::Entry::Real(_))) => None,
                // Where the directory is only in a lower there is no place for another form's mark, and
                // it has to be missed, not forgotten.
                Some(Ok(_)) | None => Some((target, Means::Hidden)),
                Some(Err(e)) => return Err(e),
            };
            marks.push(Mark {
                path: at,
                form: Form::Tagged,
                about,
                is_beside: false,
            });
        } else if kind.is_dir() {
            pending.push(at);
        }
    }
    Ok(())
}

/// True when nothing but directories is below a directory of the root.
pub(super) fn has_only_dirs(root: &Arc<OwnedFd>, name: &[u8]) -> Result<bool> {
    let mut pending = vec![name.to_vec()];
    while let Some(path) = pending.pop() {
        let dir = match open(root, &path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            dir => dir.map_err(|e| ToolError::at(&path, e))?,
        };
        for (name, kind) in entries(&dir).map_err(|e| ToolError::at(&path, e))? {
            if !kind.is_dir() {
                return Ok(false);
            }
            pending.push(join(&path, &name));
        }
    }
    Ok(true)
}
