//! `unionfs convert`: the whiteouts and opaque marks of a layer in the form of another program, in
//! place.
//!
//! First everything is marked in the new form, then that is read back and compared, then the old
//! marks go, then it is read again. As all forms count together for whoever reads them mixed, any step
//! may be the last one, and doing it again goes on from there. The marks of unionfs-fuse, which count
//! for no one else, come and go in one step, with the directory that they are in.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::cli::{Convert, Dialect};
use crate::layer::name::{self, NAME_MAX};
use crate::layer::opaque;
use crate::layer::plink::PlinkDir;
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::keep_times;
use crate::sys::{self, Errno};
use crate::union::Union;

use super::check::{lowers, open};
use super::convert_add::{ASIDE, Adding, TEMPORARY};
use super::in_use::{Purpose, lock};
use super::marks::{self, Form, Found, HIDDEN_DIR, HIDDEN_DIR_1, HIDDEN_TAG, Mark, Means};
use super::progress::{Progress, Unit};
use super::{Result, ToolError};

/// What a layer says: paths, and what of them.
type Says = BTreeSet<(Vec<u8>, Means)>;

/// Does what was asked.
///
/// # Errors
/// One line for the first thing that went wrong. The layer means the same as before then.
pub fn convert(what: &Convert) -> Result<()> {
    let below = what.options.as_deref().map(lowers).transpose()?.flatten();
    let root = open(&what.dir)?;
    let _lock = lock(&root, &what.dir, Purpose::Change)?;
    let progress = Progress::new("reading directories", Unit::Items);
    if !sys::cred::is_real_root() {
        progress.tell(
            "attributes trusted.* are for root to see: a layer that root has mounted is for root to convert",
        );
    }
    let found = marks::read(&root, what.to != Dialect::Overlay, &progress)?;
    check_links(&root, what.to)?;
    let wanted: Says = found.marks.iter().filter_map(|m| m.about.clone()).collect();
    let target = Target::new(what, &root)?;
    target.check(&found, &wanted)?;
    target.add(&root, &found, &wanted, below.as_ref(), &progress)?;
    // What cannot be found again in the new form must not go in the old one.
    progress.next("reading directories again", None);
    let both = marks::read(&root, false, &progress)?;
    target.verify(&wanted, &both, true)?;
    let old: Vec<&Mark> = both.marks.iter().filter(|m| !target.stays(m)).collect();
    if !old.is_empty() {
        // A filesystem that keeps no order could lose the new ones alone.
        sys::file::sync_filesystem(sys::fd::reopen_dir(&*root).map_err(|e| ToolError::at(b"", e))?)
            .map_err(|e| ToolError::at(b"", e))?;
    }
    progress.next("removing old marks", Some(old.len() as u64));
    target.take(&root, &both, &old, &progress)?;
    clear_metadata(&root, what.to)?;
    progress.next("reading directories once more", None);
    target.verify(&wanted, &marks::read(&root, false, &progress)?, false)
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

/// What a layer is to become.
struct Target<'a> {
    what: &'a Convert,
    /// The attribute that makes a directory opaque there.
    attribute: &'static [u8],
}

impl<'a> Target<'a> {
    fn new(what: &'a Convert, root: &OwnedFd) -> Result<Self> {
        let for_users = what.options.as_ref().is_some_and(|o| o.userxattr);
        let attribute = match for_users || !can_be_trusted(root)? {
            true => opaque::FOR_USERS,
            false => opaque::FOR_ROOT,
        };
        Ok(Self { what, attribute })
    }

    /// Where the program keeps all of its marks, if it does.
    fn tagged(&self) -> Option<&'static [u8]> {
        match self.what.to {
            Dialect::UnionfsFuse => Some(HIDDEN_DIR),
            Dialect::UnionfsFuse1 => Some(HIDDEN_DIR_1),
            _ => None,
        }
    }

    /// The forms that a mark has for the program.
    fn forms(&self, path: &[u8], means: Means) -> Vec<Form> {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        let attribute = Form::Attribute(self.attribute);
        match (self.what.to, means) {
            (Dialect::UnionfsFuse, _) => vec![Form::Tagged(HIDDEN_DIR)],
            (Dialect::UnionfsFuse1, _) => vec![Form::Tagged(HIDDEN_DIR_1)],
            (Dialect::Aufs, Means::Hidden) if name::whiteout_of(name).is_some() => {
                vec![Form::File]
            }
            (_, Means::Hidden) => vec![Form::Device],
            (Dialect::Aufs, Means::Opaque) => vec![Form::File],
            (Dialect::Overlay, Means::Opaque) => vec![attribute],
            // It looks for either, depending on its version and its user.
            (Dialect::FuseOverlayfs, Means::Opaque) => vec![attribute, Form::File],
        }
    }

    fn stays(&self, mark: &Mark) -> bool {
        let forms = |(path, means): &(Vec<u8>, Means)| self.forms(path, *means);
        let about = mark.about.as_ref().map(forms);
        about.is_some_and(|forms| forms.contains(&mark.form)) && !mark.is_beside
    }

    /// What can never succeed is refused before anything is changed.
    fn check(&self, found: &Found, wanted: &Says) -> Result<()> {
        if self.what.to != Dialect::Aufs
            && let Some(path) = found.leftovers.first()
            && !path.ends_with(TEMPORARY)
            && path != ASIDE
        {
            let hint = "is of aufs, and would show; first unionfs check --repair";
            return Err(ToolError::about(path, hint));
        }
        let Some(dir) = self.tagged() else {
            return Ok(());
        };
        let other = !found.tagged.contains(&dir);
        if other && sys::stat::stat_at(&*open(&self.what.dir)?, dir).is_ok() {
            let text =
                "has the name under which unionfs-fuse keeps its marks; rename or remove it first";
            return Err(ToolError::about(dir, text));
        }
        for (path, means) in wanted {
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
            if name.len() + HIDDEN_TAG.len() > NAME_MAX {
                let text = "too long a name for unionfs-fuse to hide";
                return Err(ToolError::about(path, text));
            }
            if path.is_empty() && *means == Means::Opaque {
                let text =
                    "the root is opaque, which unionfs-fuse cannot say; mount it without lowers";
                return Err(ToolError::about(path, text));
            }
        }
        Ok(())
    }

    fn add(
        &self, root: &Arc<OwnedFd>, found: &Found, wanted: &Says, below: Option<&Union>,
        progress: &Progress,
    ) -> Result<()> {
        let there: BTreeSet<(&[u8], Means, Form)> = found
            .marks
            .iter()
            .filter(|mark| !mark.is_beside)
            .filter_map(|m| {
                m.about
                    .as_ref()
                    .map(|(p, means)| (p.as_slice(), *means, m.form))
            })
            .collect();
        progress.next("marking", Some(wanted.len() as u64));
        let adding = Adding::new(root, self.tagged(), found, below)?;
        if self.tagged().is_none() {
            // All that can be refused comes before the first change.
            for (path, means) in wanted {
                adding.check_parent(path, *means)?;
            }
        }
        for (path, means) in wanted {
            progress.add(1);
            for form in self.forms(path, *means) {
                if !there.contains(&(path.as_slice(), *means, form)) {
                    adding.add(path, *means, form)?;
                }
            }
        }
        adding.finish()
    }

    /// Takes marks away.
    fn take(
        &self, root: &Arc<OwnedFd>, found: &Found, old: &[&Mark], progress: &Progress,
    ) -> Result<()> {
        let whole = |dir: &&[u8]| !found.mixed.contains(dir) && self.tagged() != Some(*dir);
        let base = marks::open(root, b"").map_err(|e| ToolError::at(b"", e))?;
        for dir in found.tagged.iter().copied().filter(whole) {
            let fail = |e| ToolError::at(dir, e);
            let aside = || {
                remove_tree(&base, ASIDE)?;
                let flags = rustix::fs::RenameFlags::empty();
                sys::at::rename_at(&base, dir, &base, ASIDE, flags)
            };
            keep_times(&base, aside).map_err(fail)?;
        }
        for mark in old {
            progress.add(1);
            if !matches!(mark.form, Form::Tagged(dir) if whole(&dir)) {
                take(root, mark).map_err(|e| ToolError::at(&mark.path, e))?;
            }
        }
        Ok(())
    }

    /// The layer has to say in the new form what it said before; and then in no other one.
    fn verify(&self, wanted: &Says, read: &Found, others: bool) -> Result<()> {
        let mut found: BTreeSet<(&[u8], Means, Form)> = BTreeSet::new();
        for mark in &read.marks {
            let Some((path, means)) = &mark.about else {
                continue;
            };
            if self.stays(mark) {
                found.insert((path, *means, mark.form));
            } else if !others {
                let text =
                    "changed while it was converted; see who else uses the layer, and try again";
                return Err(ToolError::about(&mark.path, text));
            }
        }
        let expected: BTreeSet<(&[u8], Means, Form)> = wanted
            .iter()
            .flat_map(|(path, means)| {
                let forms = self.forms(path, *means).into_iter();
                forms.map(|form| (path.as_slice(), *means, form))
            })
            .collect();
        match expected.symmetric_difference(&found).next() {
            None => Ok(()),
            Some((path, ..)) => Err(ToolError::about(
                path,
                format_args!(
                    "is not marked as it was in {}; nothing is lost, try again",
                    String::from_utf8_lossy(self.what.dir.as_os_str().as_bytes())
                ),
            )),
        }
    }
}

/// True when overlayfs's own attributes can be written: asked of a file without a name.
fn can_be_trusted(root: &OwnedFd) -> Result<bool> {
    match sys::at::open_tmpfile(root, 0o600) {
        Ok(file) => Ok(sys::xattr::set(file.as_fd(), b"", b"trusted.unionfs.try", b"y", 0).is_ok()),
        Err(Errno::ROFS) => Err(ToolError::at(b"", Errno::ROFS)),
        Err(_) => Ok(sys::cred::is_real_root()),
    }
}

/// Takes one mark away.
fn take(root: &Arc<OwnedFd>, mark: &Mark) -> sys::Result<()> {
    if let Form::Attribute(attr) = mark.form {
        let dir = marks::open(root, &mark.path)?;
        return sys::xattr::remove(dir.as_fd(), b"", attr);
    }
    let (parent, entry) = split(&mark.path);
    let dir = marks::open(root, parent)?;
    keep_times(&dir, || match sys::at::unlink_at(&dir, entry) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) if mark.is_tagged() => remove_tree(&dir, entry),
        result => result,
    })
}

/// The directory of a path, and its name there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// What served the old form only, and what a crash left.
fn clear_metadata(root: &Arc<OwnedFd>, to: Dialect) -> Result<()> {
    let mut places: Vec<&[u8]> = vec![ASIDE];
    if to != Dialect::Aufs {
        places.extend([name::WHITEOUT_BASE, name::ORPHANS, name::PSEUDO_LINKS]);
    }
    let base = marks::open(root, b"").map_err(|e| ToolError::at(b"", e))?;
    for place in places {
        if sys::stat::stat_at(&base, place).is_ok() {
            keep_times(&base, || remove_tree(&base, place)).map_err(|e| ToolError::at(place, e))?;
        }
    }
    Ok(())
}
