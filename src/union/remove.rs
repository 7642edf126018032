//! Removing names: unlink and rmdir.
//!
//! Order on disk: the whiteout first, then the upper's own object. In between both are there, and
//! the object wins: the old state. Nothing is ever copied up to be removed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::layer::name::{Name, NameBuf};
use crate::options::WhiteoutForm;
use crate::sys::{self, Errno, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::find::InUpper;
use super::inode::{Held, Inode};
use super::inode_table::Found;
use super::journal;
use super::lookup::dir_of;
use super::names::{Info, Names};
use super::rename::Place;

impl Union {
    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS, and what the calls on the upper give.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS, and what the calls on the upper give.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: u64, name: &[u8], want_dir: bool) -> Result<()> {
        let parent = self.inodes.get(parent)?;
        dir_of(&parent)?;
        self.upper()?;
        let name = Name::new(name)?;
        if name.is_reserved() {
            return Err(Errno::NOENT);
        }
        self.ensure_upper(&parent, Need::All)?;
        for _ in 0..8 {
            match self.remove_locked(&parent, name, want_dir) {
                // Another name of the file was just copied up.
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::BUSY)
    }

    fn remove_locked(&self, parent: &Arc<Inode>, name: Name<'_>, want_dir: bool) -> Result<()> {
        let _tree = self.tree.read();
        let names = dir_of(parent)?.write_names();
        names.unchanged();
        let found = self.find(parent, name)?.ok_or(Errno::NOENT)?.found;
        match (found.stat.kind().is_dir(), want_dir) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        let (state, in_lower) = self.standing(parent, name, Some(&found))?;
        let known = self.known(parent, name, &found);
        let inode = known.as_ref().map(|k| Arc::clone(&k.inode));
        // Nothing may be made in a directory between the look into it and its end.
        let victim = inode
            .as_ref()
            .and_then(|i| i.dir.as_deref())
            .map(|victim| victim.write_second_names());
        if let Some(victim) = &victim {
            victim.unchanged();
        }
        if want_dir && !self.is_empty(parent, name, &found, inode.as_ref())? {
            return Err(self.not_empty(&[(parent, name)]));
        }
        let losing = self.losing(parent, name, &found)?;
        let last = losing.as_ref().map(|losing| losing.last);
        let leaving = Leaving::prepare(self, parent, name, inode.clone(), &found, last)?;
        let fd = self.dir_fd(parent, 0)?;
        let losing = losing.map(|losing| (losing, parent, name));
        names.unsettle();
        if let Some(victim) = &victim {
            victim.unsettle();
        }
        let left = self.lose(losing, false, || {
            self.remove_from_upper(fd.as_fd(), name, state, in_lower)
        })?;
        if let Some(left) = left {
            names.note(name.bytes(), |_| left);
        }
        if want_dir {
            Self::subdir_changed(parent, false);
        }
        leaving.done(self);
        Ok(())
    }

    /// Why a directory that shows entries is not removed, nor anything put in its place: on a plain directory, what is
    /// immutable or append-only at one of the `places` says so before anybody looks into it.
    pub(super) fn not_empty(&self, places: &[Place<'_>]) -> Errno {
        let is_frozen = |&(parent, name): &Place<'_>| {
            parent.stack().iter().any(|part| part.layer == 0)
                && self.dir_fd(parent, 0).is_ok_and(|fd| {
                    sys::stat::is_frozen(&*fd, b"") || sys::stat::is_frozen(&*fd, name.bytes())
                })
        };
        if places.iter().any(is_frozen) {
            Errno::PERM
        } else {
            Errno::NOTEMPTY
        }
    }

    /// Hides `name` from below where needed, and removes the upper's own object. Returns what is known
    /// of the name then, if that is sure.
    fn remove_from_upper(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, in_lower: bool,
    ) -> Result<Option<Option<Info>>> {
        let upper = self.upper()?;
        let is_dir = state.real.is_some_and(|s| s.kind().is_dir());
        let mut remains = state.real.is_some();
        let mut added = false;
        let mut left = state.marker.then(|| Info::hidden(false, true, in_lower));
        // An existing whiteout file goes on hiding what is below.
        if in_lower && !state.marker {
            let beside = upper.write_whiteout(parent, name.bytes(), is_dir)?;
            left = Some(Info::hidden(!beside, beside, true));
            remains &= beside;
            added = true;
        }
        if !remains {
            return Ok(Some(left));
        }
        let removed = if is_dir {
            match sys::at::rmdir_at(parent, name.bytes()) {
                // It holds markers: it goes in one step and is emptied out of sight.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    upper.take_away(parent, name.bytes()).map(drop)
                }
                result => result,
            }
        } else {
            sys::at::unlink_at(parent, name.bytes())
        };
        if removed.is_err() && added {
            // Back to the old state; a whiteout beside its object would not hide it anyway.
            let _ = upper.remove_marker(parent, name.bytes());
        }
        removed?;
        if added && upper.form() == WhiteoutForm::Overlay {
            // Where the two could not change places.
            upper.marker_to_device(parent, name.bytes());
            return Ok(None);
        }
        if state.marker && !in_lower {
            // Nothing is below any more that the marker would hide.
            let gone = upper.remove_marker(parent, name.bytes()).is_ok();
            return Ok(gone.then_some(None));
        }
        Ok(Some(left))
    }

    /// True when the directory shows no entry.
    pub(super) fn is_empty(
        &self, parent: &Arc<Inode>, name: Name<'_>, found: &Found, inode: Option<&Arc<Inode>>,
    ) -> Result<bool> {
        let known = inode.and_then(|inode| inode.dir.as_ref()?.with_lasting_names(Names::is_empty));
        if let Some(is_empty) = known {
            return Ok(is_empty);
        }
        let stack = match (inode, &found.stack) {
            (Some(inode), _) => inode.stack(),
            (None, Some(stack)) => stack.clone(),
            (None, None) => return Ok(true),
        };
        self.shows_nothing(&stack, |layer| match inode {
            Some(inode) => self.dir_fd(inode, layer),
            None => {
                let dir = self.dir_fd(parent, layer)?;
                let same_mount = self.layers.get(layer).same_mount;
                let open = || sys::at::open_dir_path(&*dir, name.bytes(), same_mount);
                self.with_descriptors(open).map(Arc::new)
            }
        })
    }
}

/// An inode that is about to lose a name.
///
/// While this lives, the inode's real object is reached through a handle instead of the name:
/// what the kernel has open is not known here, and users of the inode must not notice the moment
/// in which the name goes. A lower's object stays where it is and needs no handle.
#[derive(Debug)]
pub(super) struct Leaving {
    inode: Option<Arc<Inode>>,
    parent: Arc<Inode>,
    name: NameBuf,
    in_upper: bool,
    last_link: bool,
    /// The file keeps other names, and the way to it.
    stays: bool,
    done: bool,
}

impl Leaving {
    /// Takes hold of what `found` says about `name`, if anyone knows it. `last` says of a file with
    /// several names in a lower whether this is the last.
    ///
    /// Precondition: the tree lock and the parent's names are held until this is dropped.
    pub fn prepare(
        union: &Union, parent: &Arc<Inode>, name: Name<'_>, inode: Option<Arc<Inode>>,
        found: &Found, last: Option<bool>,
    ) -> Result<Self> {
        let stat: &Stat = &found.stat;
        let in_upper = found.object_layer() == 0 && union.layers.upper.is_some();
        let stays = last == Some(false);
        if let Some(inode) = inode.as_ref().filter(|_| in_upper && !stays) {
            // Without a name its data could not be found any more.
            union.learn(inode, stat)?;
            let (dir, at) = match union.plink_place(inode) {
                Some(entry) => (entry.dir, entry.name),
                None => (union.dir_fd(parent, 0)?, NameBuf::from_slice(name.bytes())),
            };
            let link = |temp: BorrowedFd<'_>, new: &[u8]| sys::at::link_at(&*dir, &at, temp, new);
            let is_dir = inode.kind.is_dir();
            let journal = journal::active();
            let by_handle = is_dir || union.descriptors.may_hold() || journal.is_some();
            let upper = union.upper()?;
            let linked = (!by_handle).then(|| upper.temp(link)).and_then(Result::ok);
            // A link may be refused (their number is limited); then a handle after all.
            let held = if let Some(link) = linked {
                Held::Link(Arc::new(link))
            } else {
                let open = || sys::at::open_path(&*dir, &at).map(Arc::new);
                let fd = if is_dir {
                    union.dir_fd(inode, 0)?
                } else {
                    union.with_descriptors(open)?
                };
                if let Some(journal) = journal {
                    journal.hold(inode.cell, inode.serial, fd.as_fd());
                }
                Held::Handle {
                    fd,
                    _permit: union.descriptors.held.take(),
                }
            };
            inode.place.write().set_held(Some(held));
        }
        Ok(Self {
            inode,
            parent: Arc::clone(parent),
            name: NameBuf::from_slice(name.bytes()),
            in_upper,
            last_link: last.unwrap_or(stat.kind().is_dir() || stat.nlink <= 1),
            stays,
            done: false,
        })
    }

    /// The name is gone.
    pub fn done(mut self, union: &Union) {
        self.done = true;
        let Some(inode) = &self.inode else { return };
        if self.stays {
            let alias = if self.in_upper {
                inode.take_alias(&self.parent, &self.name).0
            } else {
                inode.take_further_alias(&self.parent, &self.name)
            };
            if let Some(alias) = alias {
                union.forget(alias.parent.id, 1);
            }
            return;
        }
        if !self.in_upper || inode.kind.is_dir() {
            // The alias stays: it is the way to the object's parts in the lowers.
            union.inodes.retire(inode);
            inode.set_unlinked();
            return;
        }
        let (alias, has_other) = inode.take_alias(&self.parent, &self.name);
        if inode.is_plinked() {
            // What else is remembered are names that it had in the lower.
            union.inodes.retire(inode);
            inode.set_unlinked();
            inode.set_plinked(false);
        } else if has_other {
            inode.place.write().set_held(None);
        } else if self.last_link {
            union.inodes.retire(inode);
            inode.set_unlinked();
        }
        // Otherwise there are names that no one has looked up; the handle leads there until then.
        if let Some(alias) = alias {
            union.forget(alias.parent.id, 1);
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(inode) = self
            .inode
            .as_ref()
            .filter(|_| !self.done && !self.stays && self.in_upper)
        {
            let mut place = inode.place.write();
            if place.alias.is_some() {
                place.set_held(None);
            }
        }
    }
}
