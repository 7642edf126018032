//! Finding a name through the layers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::elsewhere::Redirect;
use crate::layer::name::Name;
use crate::layer::opaque;
use crate::layer::whiteout::{self, Marker};
use crate::layer::{Layer, LayerIndex};
use crate::sys::{self, Errno, Result, Stat};

use super::Union;
use super::inode::{DirPart, Inode};
use super::inode_table::Found;
use super::known_names::Told;
use super::lookup::{dir_of, show};
use super::names::Info;
use super::nlink::PartLinks;

/// What the upper's own directory holds for a name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InUpper {
    /// The object, if there is one.
    pub real: Option<Stat>,
    /// A whiteout stands at the name itself.
    pub whiteout_entry: bool,
    /// A whiteout file stands beside the name.
    pub marker: bool,
}

impl InUpper {
    /// As it is known, with the attributes of an object.
    fn told(info: Info, real: Option<Stat>) -> Self {
        Self {
            real,
            whiteout_entry: info.whiteout,
            marker: info.marker,
        }
    }

    /// True when the upper hides the name from the lowers without having an object.
    pub fn is_whiteout(&self) -> bool {
        self.real.is_none() && (self.whiteout_entry || self.marker)
    }
}

/// What one layer says about a name.
pub(super) enum Step {
    /// Nothing: look further down.
    Nothing,
    /// A whiteout: the search ends.
    Hidden,
    /// An object that is not a directory: the search ends.
    File(Stat),
    /// A directory, whether it hides what is below, and where else that is.
    Directory {
        stat: Stat,
        handle: OwnedFd,
        part: DirPart,
        last: bool,
        redirect: Option<Redirect>,
    },
}

/// What [`Union::find`] found, with the handle of a directory's top layer.
#[derive(Debug)]
pub(crate) struct FoundDir {
    pub found: Found,
    pub handle: Option<OwnedFd>,
}

/// Whether a directory may be merged with others below it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sole {
    /// No layer below has one of its name.
    Yes,
    /// One may have, and no whiteout is beside this one.
    NotMarked,
    /// Nothing is known.
    Unknown,
}

/// A directory as its parts are found.
#[derive(Default)]
struct Merge {
    found: Option<FoundDir>,
    links: PartLinks,
}

impl Merge {
    fn done(self) -> Option<FoundDir> {
        let mut found = self.found?;
        let stack = found.found.stack.as_ref();
        found.found.subdirs = stack.and_then(|stack| self.links.subdirs(stack));
        Some(found)
    }
}

impl Union {
    /// Finds `name` in a directory.
    ///
    /// Precondition: the tree lock and the parent's names are held.
    pub(super) fn find(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Option<FoundDir>> {
        let dir = dir_of(parent)?;
        let told = dir.told(name.bytes());
        self.counted.name(!matches!(told, Told::Unknown));
        match told {
            Told::Absent => return Ok(None),
            Told::There(info, _) if !info.shown => return Ok(None),
            Told::There(info, below) => {
                if let Some(found) = self.find_told(parent, name, info, &below)? {
                    return Ok(Some(found));
                }
                // A layer was changed behind our back.
                dir.forget_names();
            }
            Told::Unknown => {}
        }
        let found = self.find_from(parent, name, 0);
        let layers = match &found {
            Ok(Some(found)) => usize::from(found.found.layer) + 1,
            _ => dir.stack.read().len(),
        };
        self.count_looks(parent, layers);
        found
    }

    /// The same in the layers that have it, as far as is known; `None` if it is not so.
    fn find_told(
        &self, parent: &Arc<Inode>, name: Name<'_>, info: Info, below: &[LayerIndex],
    ) -> Result<Option<FoundDir>> {
        if info.kind.is_dir() {
            return self.find_told_dir(parent, name, info, below);
        }
        let dir = self.dir_fd(parent, info.layer)?;
        let stat = match sys::stat::stat_at(&*dir, name.bytes()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        let stat = self
            .owners
            .recorded(info.layer, dir.as_fd(), name.bytes(), stat)?;
        if stat.kind() != info.kind {
            return Ok(None);
        }
        let mut found = self.file_found(&dir, name, info.layer, stat);
        if found.plink.is_none() && self.layers.is_top(info.layer) {
            // What was read or noted then is what its record says.
            found.ino = Some(info.ino);
        }
        Ok(Some(FoundDir {
            found,
            handle: None,
        }))
    }

    fn find_told_dir(
        &self, parent: &Arc<Inode>, name: Name<'_>, info: Info, below: &[LayerIndex],
    ) -> Result<Option<FoundDir>> {
        let stat_dir = |layer| -> Result<Option<(Arc<OwnedFd>, Stat)>> {
            let dir = self.dir_fd(parent, layer)?;
            match sys::stat::stat_at(&*dir, name.bytes()) {
                Ok(stat) => Ok(stat.kind().is_dir().then_some((dir, stat))),
                Err(Errno::NOENT) => Ok(None),
                Err(e) => Err(e),
            }
        };
        let Some((dir, stat)) = stat_dir(info.layer)? else {
            return Ok(None);
        };
        let known = self.inodes.find_dir(parent, name.bytes(), &stat);
        // Whether it was made opaque meanwhile nobody says of one that is not watched.
        if let Some(inode) = known.filter(|inode| !self.is_unwatched(inode)) {
            let stat = self
                .owners
                .recorded(info.layer, dir.as_fd(), name.bytes(), stat)?;
            let mut found = Found::single(info.layer, stat, Some(inode.stack()));
            found.ino = Some(inode.ino());
            return Ok(Some(FoundDir {
                found,
                handle: None,
            }));
        }
        let mut merge = Merge::default();
        let layers = std::iter::once(info.layer).chain(below.iter().copied());
        let mut top = Some((dir, stat));
        for (at, layer) in layers.enumerate() {
            let is_last = at == below.len();
            let Some((dir, stat)) = top
                .take()
                .map_or_else(|| stat_dir(layer), |top| Ok(Some(top)))?
            else {
                return Ok(None);
            };
            let is_sole = if is_last { Sole::Yes } else { Sole::NotMarked };
            let step = self.directory_step(&dir, name.bytes(), layer, stat, is_sole)?;
            if self.add_part(parent, &mut merge, layer, step)? {
                break;
            }
        }
        let mut found = merge.done();
        if let Some(found) = found.as_mut().filter(|_| self.layers.is_top(info.layer)) {
            found.found.ino = Some(info.ino);
        }
        Ok(found)
    }

    /// The same without what is known of names.
    pub(super) fn find_by_looking(
        &self, parent: &Arc<Inode>, name: Name<'_>,
    ) -> Result<Option<FoundDir>> {
        self.find_from(parent, name, 0)
    }

    /// Finds `name` in the layers of `parent` from layer `from` on, by looking.
    ///
    /// Precondition: as for [`Self::find`].
    fn find_from(
        &self, parent: &Arc<Inode>, name: Name<'_>, from: LayerIndex,
    ) -> Result<Option<FoundDir>> {
        let mut merge = Merge::default();
        for part in parent.stack() {
            if part.layer < from {
                continue;
            }
            let dir = self.dir_fd(parent, part.layer)?;
            match self.step(&dir, name, part)? {
                Step::Nothing => {}
                Step::Hidden => break,
                Step::File(stat) => {
                    // Below a directory, a file ends the merge without being part of it.
                    if merge.found.is_none() {
                        return Ok(Some(FoundDir {
                            found: self.file_found(&dir, name, part.layer, stat),
                            handle: None,
                        }));
                    }
                    break;
                }
                step => {
                    if self.add_part(parent, &mut merge, part.layer, step)? {
                        break;
                    }
                }
            }
        }
        Ok(merge.done())
    }

    /// Adds a layer's part of a directory; true when it is the last one.
    fn add_part(
        &self, parent: &Arc<Inode>, merge: &mut Merge, layer: LayerIndex, step: Step,
    ) -> Result<bool> {
        let Step::Directory {
            stat,
            handle,
            part,
            last,
            redirect,
        } = step
        else {
            return Ok(true);
        };
        merge.links.add(stat.nlink);
        let top = merge.found.get_or_insert_with(|| FoundDir {
            found: Found::single(layer, stat, None),
            handle: Some(handle),
        });
        top.found.stack.get_or_insert_default().push(part);
        let is_redirected = redirect.is_some();
        if let Some(redirect) = redirect {
            self.follow(parent, top, layer, redirect)?;
        }
        Ok(last || is_redirected)
    }

    /// A file of a layer, or the copy that stands for it.
    fn file_found(&self, dir: &OwnedFd, name: Name<'_>, layer: LayerIndex, stat: Stat) -> Found {
        if !self.layers.is_top(layer) {
            return match self.copy_of(dir, name.bytes(), &stat) {
                Some((number, copy)) => Found::single(layer, copy, None).with_plink(Some(number)),
                None => Found::single(layer, stat, None),
            };
        }
        let number = (stat.nlink > 1).then(|| self.number_of_copy(stat.dev, stat.ino));
        Found::single(layer, stat, None).with_plink(number.flatten())
    }

    /// What one layer says about a name.
    pub(super) fn step(&self, dir: &OwnedFd, name: Name<'_>, part: DirPart) -> Result<Step> {
        let bytes = name.bytes();
        let whiteouts = self.layers.get(part.layer).whiteouts;
        match whiteout::entry(dir.as_fd(), bytes, part.xattr_whiteouts)? {
            whiteout::Entry::Whiteout if whiteouts => return Ok(Step::Hidden),
            whiteout::Entry::Whiteout => return Ok(Step::File(sys::stat::stat_at(dir, bytes)?)),
            whiteout::Entry::Real(stat) if !stat.kind().is_dir() => {
                let stat = self.owners.recorded(part.layer, dir.as_fd(), bytes, stat)?;
                return Ok(Step::File(stat));
            }
            whiteout::Entry::Real(stat) => {
                return self.directory_step(dir, bytes, part.layer, stat, Sole::Unknown);
            }
            whiteout::Entry::Nothing if whiteouts => {}
            whiteout::Entry::Nothing => return Ok(Step::Nothing),
        }
        match whiteout::marker(dir.as_fd(), bytes)? {
            Marker::Nothing => Ok(Step::Nothing),
            Marker::Whiteout => Ok(Step::Hidden),
            Marker::Malformed => {
                let layer = self.layers.get(part.layer).path.display();
                tracing::error!(
                    "{layer}: a whiteout is not a regular file: .wh.{}",
                    show(bytes)
                );
                Err(Errno::IO)
            }
        }
    }

    /// The same for a name that is a directory there, with attributes `stat`.
    fn directory_step(
        &self, dir: &OwnedFd, bytes: &[u8], layer: LayerIndex, stat: Stat, sole: Sole,
    ) -> Result<Step> {
        let stat = self.owners.recorded(layer, dir.as_fd(), bytes, stat)?;
        let Layer {
            whiteouts,
            same_mount,
            ..
        } = *self.layers.get(layer);
        let open = || sys::at::open_dir_path(dir, bytes, same_mount);
        let handle = self.with_descriptors(open)?;
        let mut marks = opaque::read(handle.as_fd())?;
        let leads_on = sole != Sole::Yes || marks.redirect.is_some();
        // Whether it hides what is below is of no concern where nothing is.
        let last = whiteouts && leads_on && {
            marks.opaque
                || opaque::has_marker_file(handle.as_fd())?
                || (sole == Sole::Unknown || marks.redirect.is_some())
                    // A directory beside its own whiteout was made after it.
                    && whiteout::marker(dir.as_fd(), bytes)? != Marker::Nothing
        };
        let record = marks.redirect.take().filter(|_| !last);
        let redirect = self.redirect_of(layer, bytes, record)?;
        Ok(Step::Directory {
            stat,
            handle,
            part: DirPart {
                layer,
                xattr_whiteouts: marks.xattr_whiteouts,
                copies: marks.copies,
            },
            last,
            redirect,
        })
    }

    /// True when the subdirectory `name` of a directory with these parts is made of several layers.
    pub(super) fn is_merged(
        &self, parts: &[(DirPart, Arc<OwnedFd>)], name: Name<'_>,
    ) -> Result<bool> {
        let mut directories = 0;
        for (part, dir) in parts {
            match self.step(dir, name, *part)? {
                Step::Nothing => {}
                Step::Hidden | Step::File(_) => break,
                Step::Directory {
                    redirect: Some(_), ..
                } => return Ok(true),
                Step::Directory { last, .. } => {
                    directories += 1;
                    if last {
                        break;
                    }
                }
            }
        }
        Ok(directories > 1)
    }

    /// What the upper hides at a name that nothing is shown for.
    ///
    /// Precondition: as for [`Self::find`].
    ///
    /// # Errors
    /// EEXIST when something is.
    pub(super) fn vacancy(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<InUpper> {
        match dir_of(parent)?.told(name.bytes()) {
            Told::Absent => return Ok(InUpper::default()),
            Told::There(info, _) if info.shown => return Err(Errno::EXIST),
            Told::There(info, _) => return Ok(InUpper::told(info, None)),
            Told::Unknown => {}
        }
        let state = self.in_upper_dir(parent, name)?;
        self.count_looks(parent, 2);
        if state.real.is_some() || (!state.is_whiteout() && self.in_lower(parent, name)?) {
            return Err(Errno::EXIST);
        }
        Ok(state)
    }

    /// What the upper's directory holds for a name that stands for `found`, and whether a lower
    /// shows it.
    ///
    /// Precondition: as for [`Self::find`].
    pub(super) fn standing(
        &self, parent: &Arc<Inode>, name: Name<'_>, found: Option<&Found>,
    ) -> Result<(InUpper, bool)> {
        let real = found.filter(|found| self.layers.is_upper(found.layer));
        match dir_of(parent)?.told(name.bytes()) {
            Told::Absent => Ok((InUpper::default(), false)),
            Told::There(info, _) => {
                let state = InUpper::told(info, real.map(|found| found.stat));
                Ok((state, info.in_lower))
            }
            Told::Unknown => {
                let state = self.in_upper_dir(parent, name)?;
                Ok((state, self.in_lower(parent, name)?))
            }
        }
    }

    /// What the upper's directory holds for `name`; nothing when the directory is not there yet.
    fn in_upper_dir(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<InUpper> {
        if !self.in_upper(parent) {
            return Ok(InUpper::default());
        }
        let dir = self.dir_fd(parent, 0)?;
        let xattr_whiteouts = parent
            .stack()
            .first()
            .is_some_and(|part| part.xattr_whiteouts);
        let mut result = InUpper::default();
        match whiteout::entry(dir.as_fd(), name.bytes(), xattr_whiteouts)? {
            whiteout::Entry::Nothing => {}
            whiteout::Entry::Whiteout => result.whiteout_entry = true,
            whiteout::Entry::Real(stat) => result.real = Some(stat),
        }
        result.marker = match whiteout::marker(dir.as_fd(), name.bytes())? {
            Marker::Nothing => false,
            Marker::Whiteout => true,
            Marker::Malformed => return Err(Errno::IO),
        };
        Ok(result)
    }

    /// True when a lower shows `name`, so that hiding it needs a whiteout.
    fn in_lower(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<bool> {
        if parent.stack().iter().all(|part| part.layer == 0) {
            return Ok(false);
        }
        Ok(self.find_from(parent, name, 1)?.is_some())
    }
}
