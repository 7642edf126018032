//! `unionfs convert`: the whiteouts and opaque marks of a layer in the form of another program, in
//! place.
//!
//! First everything is marked in the new form, then that is read back and compared, then the old
//! marks go, then it is read again. As all forms count together for whoever reads them mixed, any step
//! may be the last one, and doing it again goes on from there.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::cli::{Convert, Dialect};
use crate::layer::name;
use crate::layer::opaque;
use crate::layer::plink::PlinkDir;
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::keep_times;
use crate::sys::{self, Errno};

use super::check::{lock, open};
use super::marks::{self, Form, HIDDEN_DIR, HIDDEN_TAG, Mark, Means};
use super::progress::{Progress, Unit};
use super::{Result, ToolError};

/// Does what was asked.
///
/// # Errors
/// One line for the first thing that went wrong. The layer means the same as before then.
pub fn convert(what: &Convert) -> Result<()> {
    let root = open(&what.dir)?;
    let _lock = lock(&root, &what.dir)?;
    let progress = Progress::new("reading directories", Unit::Items);
    let found = marks::read(&root, what.to != Dialect::Overlay, &progress)?;
    check_links(&root, what.to)?;
    let wanted: BTreeSet<(Vec<u8>, Means)> = found.iter().filter_map(Mark::meaning).collect();
    progress.next("marking", Some(wanted.len() as u64));
    for (path, means) in &wanted {
        progress.add(1);
        for form in forms(what.to, path, *means) {
            let there = |mark: &Mark| mark.form == form && mark.meaning_is(path, *means);
            if !found.iter().any(there) {
                add(&root, path, form).map_err(|e| refused(path, form, e))?;
            }
        }
    }
    // What cannot be found again in the new form must not go in the old one.
    progress.next("reading directories again", None);
    let both = marks::read(&root, false, &progress)?;
    verify(what, &wanted, &both, true)?;
    progress.next("removing old marks", Some(both.len() as u64));
    for mark in &both {
        progress.add(1);
        let stays = mark.meaning().is_some_and(|(path, means)| {
            forms(what.to, &path, means).contains(&mark.form) && !mark.is_beside
        });
        if !stays {
            take(&root, mark).map_err(|e| ToolError::at(&mark.path, e))?;
        }
    }
    clear_metadata(&root, what.to)?;
    progress.next("reading directories once more", None);
    verify(what, &wanted, &marks::read(&root, false, &progress)?, false)
}

/// The forms that a mark has for a program.
fn forms(to: Dialect, path: &[u8], means: Means) -> Vec<Form> {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    match (to, means) {
        (Dialect::UnionfsFuse, _) => vec![Form::Tagged],
        (Dialect::Aufs, Means::Hidden) if name::whiteout_of(name).is_some() => vec![Form::File],
        (_, Means::Hidden) => vec![Form::Device],
        (Dialect::Aufs, Means::Opaque) => vec![Form::File],
        (Dialect::Overlay, Means::Opaque) => vec![Form::Attribute],
        // It looks for either, depending on its version and its user.
        (Dialect::FuseOverlayfs, Means::Opaque) => vec![Form::Attribute, Form::File],
    }
}

fn refused(path: &[u8], form: Form, errno: Errno) -> ToolError {
    let what = match form {
        Form::Device => "a whiteout device cannot be made",
        Form::Attribute => "an opaque attribute cannot be set",
        Form::Tagged if errno == Errno::NAMETOOLONG => "too long a name for unionfs-fuse to hide",
        _ => "a whiteout cannot be made",
    };
    ToolError::about(
        path,
        format_args!("{what}: {}", std::io::Error::from(errno)),
    )
}

/// Names that belong together are known to us and to aufs only.
fn check_links(root: &Arc<OwnedFd>, to: Dialect) -> Result<()> {
    let fail = |e| ToolError::at(name::PSEUDO_LINKS, e);
    let links = PlinkDir::new(root).map_err(fail)?;
    let entries = links.list().map_err(fail)?;
    let any = entries.iter().any(|(_, upper, _)| *upper != 0);
    if (any || links.intent().is_some()) && to != Dialect::Aufs {
        return Err(ToolError::new(
            "there are pseudo-links, which only unionfs and aufs know: first unionfs plink flush",
        ));
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Adds a mark; it may be there.
fn add(root: &Arc<OwnedFd>, path: &[u8], form: Form) -> sys::Result<()> {
    let (parent, entry) = split(path);
    match form {
        Form::Device => {
            let dir = marks::open(root, parent)?;
            keep_times(&dir, || {
                sys::at::mknod_at(&dir, entry, libc::S_IFCHR, 0).or_else(there)
            })
        }
        Form::Attribute => opaque::set_attr(marks::open(root, path)?.as_fd(), b""),
        Form::Empty => Err(Errno::INVAL),
        Form::File => {
            // A directory that is there is marked inside, all else beside.
            match marks::open(root, path) {
                Ok(dir) => keep_times(&dir, || file(root, &dir, name::OPAQUE)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    let dir = marks::open(root, parent)?;
                    let marker = name::whiteout_of(entry).ok_or(Errno::NAMETOOLONG)?;
                    keep_times(&dir, || file(root, &dir, &marker))
                }
                Err(e) => Err(e),
            }
        }
        Form::Tagged => {
            let mut dir = marks::open(root, b"")?;
            let above = parent.split(|&b| b == b'/').filter(|name| !name.is_empty());
            for name in std::iter::once(HIDDEN_DIR).chain(above) {
                keep_times(&dir, || sys::at::mkdir_at(&dir, name, 0o755).or_else(there))?;
                dir = sys::at::open_dir_path(&dir, name, true)?;
            }
            file(root, &dir, &[entry, HIDDEN_TAG].concat())
        }
    }
}

fn there(errno: Errno) -> sys::Result<()> {
    match errno {
        Errno::EXIST => Ok(()),
        e => Err(e),
    }
}

/// An empty file; for aufs a link to the one that all of its whiteouts are.
fn file(root: &Arc<OwnedFd>, dir: &OwnedFd, name: &[u8]) -> sys::Result<()> {
    let make = |dir: &OwnedFd, name: &[u8]| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        sys::at::open_at(dir, name, flags, 0o444, false)
            .map(drop)
            .or_else(there)
    };
    if !name.starts_with(name::PREFIX) {
        return make(dir, name);
    }
    let base = marks::open(root, b"")?;
    keep_times(&base, || make(&base, name::WHITEOUT_BASE))?;
    match sys::at::link_at(&base, name::WHITEOUT_BASE, dir, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // At the limit of links, or where there are none.
        Err(_) => make(dir, name),
    }
}

/// Takes one mark away.
fn take(root: &Arc<OwnedFd>, mark: &Mark) -> sys::Result<()> {
    if mark.form == Form::Attribute {
        return opaque::clear_all(marks::open(root, &mark.path)?.as_fd());
    }
    let (parent, entry) = split(&mark.path);
    let dir = marks::open(root, parent)?;
    keep_times(&dir, || match sys::at::unlink_at(&dir, entry) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) if mark.form == Form::Tagged => remove_tree(&dir, entry),
        result => result,
    })
}

/// What served the old form only, and what a crash left.
fn clear_metadata(root: &Arc<OwnedFd>, to: Dialect) -> Result<()> {
    let mut places: Vec<&[u8]> = Vec::new();
    if to != Dialect::UnionfsFuse && marks::has_only_dirs(root, HIDDEN_DIR)? {
        places.push(HIDDEN_DIR);
    }
    if to != Dialect::Aufs {
        places.extend([name::WHITEOUT_BASE, name::ORPHANS, name::PSEUDO_LINKS]);
    }
    let base = marks::open(root, b"").map_err(|e| ToolError::at(b"", e))?;
    for place in places {
        let remove = || match remove_tree(&base, place) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        };
        if sys::stat::stat_at(&base, place).is_ok() {
            keep_times(&base, remove).map_err(|e| ToolError::at(place, e))?;
        }
    }
    Ok(())
}

/// The layer has to say in the new form what it said before; and then in no other one.
fn verify(
    what: &Convert, wanted: &BTreeSet<(Vec<u8>, Means)>, read: &[Mark], others: bool,
) -> Result<()> {
    let mut found: BTreeSet<(Vec<u8>, Means)> = BTreeSet::new();
    for (mark, (path, means)) in read.iter().filter_map(|m| Some((m, m.meaning()?))) {
        if forms(what.to, &path, means).contains(&mark.form) {
            found.insert((path, means));
        } else if !others {
            return Err(ToolError::about(
                &mark.path,
                "changed while it was converted",
            ));
        }
    }
    match wanted.symmetric_difference(&found).next() {
        None => Ok(()),
        Some((path, _)) => Err(ToolError::about(
            path,
            format_args!(
                "is not marked as it was in {}; nothing is lost, try again",
                String::from_utf8_lossy(what.dir.as_os_str().as_bytes())
            ),
        )),
    }
}
