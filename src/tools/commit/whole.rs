//! The first step: what the upper leaves to its lowers comes into it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::cli::Commit;
use crate::layer::plink::PlinkDir;
use crate::layer::{elsewhere, name, opaque};
use crate::mount;
use crate::options::{Lower, Options};
use crate::sys::{self, Errno, FileKind};
use crate::union::{ROOT, Union};

use super::super::{ToolError, join};
use super::entry::Listing;
use super::{Both, Result};

/// What was found in the upper.
#[derive(Default)]
pub(super) struct Survey {
    /// Names.
    pub entries: u64,
    /// It does not stand alone.
    pub leans: bool,
    /// Directories that have their contents elsewhere in the lowers, those above first.
    moved: Vec<Vec<u8>>,
    /// Files that have their data there.
    borrowed: Vec<Vec<u8>>,
}

/// Looks through the upper, and at what it is above.
pub(super) fn survey(both: &Both) -> Result<Survey> {
    let mut survey = Survey::default();
    let fail = |e| ToolError::at(name::PSEUDO_LINKS, e);
    let links = PlinkDir::new(&both.upper).map_err(fail)?;
    survey.leans = links.get().is_some();
    let mut pending: Vec<(Vec<u8>, Option<Arc<OwnedFd>>)> =
        vec![(Vec::new(), Some(Arc::clone(&both.lower)))];
    while let Some((path, lower)) = pending.pop() {
        let fail = |e| ToolError::at(&path, e);
        let dir = open(&both.upper, &path).map_err(fail)?;
        let listing = Listing::read(&dir).map_err(fail)?;
        if let Some(lower) = &lower
            && !both.is_layer
            && Listing::read(lower).map_err(fail)?.hides()
        {
            return Err(ToolError::about(
                &path,
                "of the lower hides something of layers below it: name these with --below",
            ));
        }
        for (name, named) in &listing.names {
            survey.entries += 1;
            let Some(stat) = &named.real else { continue };
            let fail = |e| ToolError::at(&join(&path, name), e);
            if stat.kind() == FileKind::Directory {
                let own = sys::at::open_dir_path(&dir, name, true).map_err(fail)?;
                let marks = opaque::read(own.as_fd()).map_err(fail)?;
                let alone = named.marker
                    || marks.opaque
                    || opaque::has_marker_file(own.as_fd()).map_err(fail)?;
                if marks.redirect.is_some() && !alone {
                    survey.moved.push(join(&path, name));
                }
                let below = lower.as_ref().filter(|_| !alone);
                let below = below.map(|lower| sys::at::open_dir_path(&**lower, name, true));
                let below = below.and_then(std::result::Result::ok).map(Arc::new);
                pending.push((join(&path, name), below));
            } else if stat.kind() == FileKind::Regular {
                let record = elsewhere::metacopy(dir.as_fd(), name).map_err(fail)?;
                if record.is_some() {
                    survey.borrowed.push(join(&path, name));
                }
            }
        }
    }
    survey.leans |= !survey.moved.is_empty() || !survey.borrowed.is_empty();
    survey.moved.sort();
    Ok(survey)
}

fn open(root: &OwnedFd, path: &[u8]) -> sys::Result<OwnedFd> {
    let mut dir = sys::at::open_dir_path(root, b".", true)?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        dir = sys::at::open_dir_path(&dir, name, true)?;
    }
    Ok(dir)
}

/// Brings into the upper what it leans on.
pub(super) fn make_whole(what: &Commit, survey: &Survey) -> Result<()> {
    let below = what.below.iter();
    let lower = |path: &std::path::PathBuf| Lower {
        path: path.clone(),
        whiteouts: true,
    };
    let options = Options {
        upper: Some(what.upper.clone()),
        lowers: std::iter::once(&what.lower)
            .chain(below)
            .map(lower)
            .collect(),
        upper_inside: true,
        ..Options::default()
    };
    let union = mount::open_union(&options);
    let union = union.map_err(|e| ToolError::new(format_args!("{e}")))?;
    for path in &survey.moved {
        let settle = |parent, name: &[u8]| union.settle_dir(parent, name);
        at(&union, path, settle).map_err(|e| ToolError::at(path, e))?;
    }
    // A directory that was moved may have brought more of them.
    for path in borrowed(what)? {
        let settle = |parent, name: &[u8]| union.settle_file(parent, name);
        at(&union, &path, settle).map_err(|e| ToolError::at(&path, e))?;
    }
    // Last, since a directory that was moved may have brought linked files.
    let flushed = union.flush_plinks();
    let flushed = flushed.map_err(|e| ToolError::at(name::PSEUDO_LINKS, e))?;
    if flushed.kept > 0 {
        return Err(ToolError::new(format_args!(
            "{} pseudo-links had to stay; the log says why: RUST_LOG=warn",
            flushed.kept
        )));
    }
    Ok(())
}

fn borrowed(what: &Commit) -> Result<Vec<Vec<u8>>> {
    let both = Both {
        upper: super::open(&what.upper)?,
        lower: super::open(&what.lower)?,
        // What it hides was looked at.
        is_layer: true,
        owners: true,
    };
    Ok(survey(&both)?.borrowed)
}

/// Calls `change` with the directory of a path and the last name.
fn at(
    union: &Union, path: &[u8], change: impl FnOnce(u64, &[u8]) -> sys::Result<()>,
) -> sys::Result<()> {
    let mut names: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    let last = names.pop().ok_or(Errno::INVAL)?;
    let mut id = ROOT;
    for name in names {
        id = union.lookup(id, name)?.ok_or(Errno::NOENT)?.id;
    }
    change(id, last)
}
