//! Renaming.
//!
//! Order on disk: first what keeps lower objects hidden (the source's whiteout file, the moved
//! directory's opaque mark), then one rename, then what it made void. Before the rename every state
//! shows the old tree, after it the new one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::Name;
use crate::options::RenameDir;
use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::complete::Completion;
use super::copy_up::Need;
use super::fate::Fate;
use super::find::InUpper;
use super::inode::Inode;
use super::inode_table::Found;
use super::journal;
use super::lookup::{Known, dir_of};
use super::remove::Leaving;
use super::rename_names::{BothNames, Left};

/// One side of a rename.
pub(super) struct Side<'a> {
    pub parent: &'a Arc<Inode>,
    pub name: Name<'a>,
    pub fd: Arc<OwnedFd>,
    pub found: Option<Found>,
    pub inode: Option<Arc<Inode>>,
    /// Keeps the inode known until the rename is done.
    _known: Option<Known<'a>>,
    pub state: InUpper,
    /// A lower shows the name.
    pub in_lower: bool,
}

impl Side<'_> {
    /// True when the object is in the upper, or a copy of it is about to be.
    fn is_ready(&self, completion: Option<&Completion<'_>>) -> bool {
        let completes = |inode| completion.is_some_and(|c| c.is_for(inode));
        self.found.as_ref().is_some_and(|found| found.layer == 0)
            || self.inode.as_ref().is_some_and(completes)
    }

    /// True when it is known that nothing of the object is in a lower.
    fn stands_alone(&self) -> bool {
        let alone = |inode: &Arc<Inode>| match inode.kind {
            FileKind::Regular => inode.is_whole(),
            FileKind::Directory => inode.stack().len() == 1,
            _ => true,
        };
        self.inode.as_ref().is_some_and(alone)
    }

    pub fn is_dir(&self) -> bool {
        self.found.as_ref().is_some_and(|f| f.stat.kind().is_dir())
    }

    /// Something below must stay hidden if a directory comes here.
    pub fn hides_something(&self) -> bool {
        self.in_lower || self.state.marker || self.state.whiteout_entry
    }
}

/// What a rename has to do before it, by side.
#[derive(Default)]
struct Work<'a> {
    source: Option<Completion<'a>>,
    target: Option<Completion<'a>>,
    /// A redirect could not be recorded.
    no_redirect: bool,
    /// Nobody has looked yet what has to be copied.
    is_trial: bool,
}

/// A name with its directory.
pub(super) type Place<'a> = (&'a Arc<Inode>, Name<'a>);

impl Union {
    /// Renames as renameat2(2) does; `flags` are its bits.
    ///
    /// # Errors
    /// EXDEV for a directory with contents in a lower if it is not to be moved; otherwise as
    /// rename(2).
    pub fn rename(
        &self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags != RenameFlags::EXCHANGE {
            return Err(Errno::INVAL);
        }
        let from = self.inodes.get(parent)?;
        let to = self.inodes.get(new_parent)?;
        self.upper()?;
        let name = Name::new(name)?;
        if name.is_reserved() {
            return Err(Errno::NOENT);
        }
        let new_name = Name::creatable(new_name)?;
        if from.is_unlinked() || to.is_unlinked() {
            return Err(Errno::NOENT);
        }
        if Arc::ptr_eq(&from, &to) && name == new_name {
            // One and the same name: nothing happens, so nothing is copied up.
            let entry = self.lookup(from.id, name.bytes())?.ok_or(Errno::NOENT)?;
            self.forget(entry.id, 1);
            let refused = flags.contains(RenameFlags::NOREPLACE);
            return if refused { Err(Errno::EXIST) } else { Ok(()) };
        }
        self.ensure_upper(&from, Need::All)?;
        self.ensure_upper(&to, Need::All)?;
        let (from, to) = ((&from, name), (&to, new_name));
        self.rename_with_work(from, to, flags)
    }

    /// The same if nothing has to be copied for it; `None` if that may be.
    ///
    /// # Errors
    /// As [`Self::rename`].
    pub fn try_rename(
        &self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], flags: u32,
    ) -> Option<Result<()>> {
        let known = |id| self.inodes.get(id).ok().filter(|dir| self.in_upper(dir));
        let (from, to) = (known(parent)?, known(new_parent)?);
        let flags = RenameFlags::from_bits(flags)?;
        let (name, new_name) = (Name::creatable(name).ok()?, Name::creatable(new_name).ok()?);
        let same = Arc::ptr_eq(&from, &to) && name == new_name;
        if same || !(flags & !RenameFlags::NOREPLACE).is_empty() {
            return None;
        }
        let mut work = Work {
            is_trial: true,
            ..Work::default()
        };
        let result = self.rename_locked((&from, name), (&to, new_name), flags, &mut work);
        (result != Err(Errno::AGAIN)).then_some(result)
    }

    fn rename_with_work(&self, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<()> {
        let mut work = Work::default();
        // Copying happens without locks; what is changed meanwhile is looked at again. There is an
        // end to changes that matter to the completion of a directory, not to others.
        let mut tries = 0;
        loop {
            let completes = self.bring_up(from, to, flags, &mut work)?;
            match self.rename_locked(from, to, flags, &mut work) {
                Err(Errno::AGAIN) if completes || tries < 8 => tries += 1,
                Err(Errno::AGAIN) => return Err(Errno::BUSY),
                result => return result,
            }
        }
    }

    /// Copies what the rename needs in the upper. Returns whether that completes a directory.
    fn bring_up<'a>(
        &'a self, from: Place<'_>, to: Place<'_>, flags: RenameFlags, work: &mut Work<'a>,
    ) -> Result<bool> {
        let no_redirect = work.no_redirect;
        let is_refused = || self.check_target(from, to, flags);
        let mut completes = self.bring_up_side(from, no_redirect, &mut work.source, is_refused)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = &mut work.target;
            completes |= self.bring_up_side(to, no_redirect, target, is_refused)?;
        }
        Ok(completes)
    }

    fn bring_up_side<'a>(
        &'a self, (parent, name): Place<'_>, no_redirect: bool, slot: &mut Option<Completion<'a>>,
        is_refused: impl Fn() -> Result<()>,
    ) -> Result<bool> {
        let known = self.lookup_known(parent, name)?.ok_or(Errno::NOENT)?;
        let inode = &known.inode;
        if !inode.kind.is_dir() || !self.shows_lower(inode)? {
            *slot = None;
            self.ensure_upper(inode, Need::All)?;
            self.bring_name_up(inode, parent, name.bytes())?;
            self.pin_data(inode)?;
            return Ok(false);
        }
        // What is wrong with the target comes before what we cannot do, or do for nothing.
        is_refused()?;
        match self.elsewhere.rename_dir {
            RenameDir::Exdev => Err(Errno::XDEV),
            RenameDir::Redirect if !no_redirect => {
                self.ensure_upper(inode, Need::All)?;
                Ok(false)
            }
            RenameDir::Redirect | RenameDir::Copy => {
                let completion = match slot {
                    Some(completion) if completion.is_for(inode) => completion,
                    slot => slot.insert(Completion::new(self, parent, name, known)),
                };
                completion.prepare()?;
                Ok(true)
            }
        }
    }

    /// Refuses a directory's rename for what is at the target.
    fn check_target(&self, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if is_within(to.0, from.0, from.1) || (exchange && is_within(from.0, to.0, to.1)) {
            return Err(Errno::INVAL);
        }
        let (parent, name) = to;
        let dir = dir_of(parent)?;
        let _tree = self.tree.read();
        let _names = dir.read_names();
        let Some(found) = self.find(parent, name)? else {
            return if exchange { Err(Errno::NOENT) } else { Ok(()) };
        };
        let found = found.found;
        let known = self.known(parent, name, &found);
        let inode = known.as_ref().map(|k| &k.inode);
        if flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST);
        }
        if exchange {
            return Ok(());
        }
        match (
            found.stat.kind().is_dir(),
            self.is_empty(parent, name, &found, inode)?,
        ) {
            (false, _) => Err(Errno::NOTDIR),
            (true, false) => Err(self.not_empty(&[from, to])),
            (true, true) => Ok(()),
        }
    }

    /// True when a lower contributes entries to the directory.
    fn shows_lower(&self, inode: &Arc<Inode>) -> Result<bool> {
        let dir = dir_of(inode)?;
        let _tree = self.tree.read();
        let _names = dir.read_names();
        self.shows_lower_locked(inode)
    }

    pub(super) fn shows_lower_locked(&self, inode: &Arc<Inode>) -> Result<bool> {
        let stack = inode.stack();
        if stack.iter().all(|part| part.layer == 0) {
            return Ok(false);
        }
        self.lower_contributes(&stack, |layer| self.dir_fd(inode, layer))
    }

    fn rename_locked<'a>(
        &'a self, (from, name): Place<'_>, (to, new_name): Place<'_>, flags: RenameFlags,
        work: &mut Work<'a>,
    ) -> Result<()> {
        // Written, not read: no path changes under anyone's feet, and all names stand still.
        let _tree = self.tree.write();
        let (first, second) = if from.serial <= to.serial {
            (from, to)
        } else {
            (to, from)
        };
        let first_names = dir_of(first)?.write_names();
        let second_names = if Arc::ptr_eq(from, to) {
            None
        } else {
            Some(dir_of(second)?.write_second_names())
        };
        let names = BothNames::new(
            &first_names,
            second_names.as_ref(),
            Arc::ptr_eq(first, from),
        );
        names.unchanged();
        if from.is_unlinked() || to.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let src = self.side(from, name)?;
        let mut dst = self.side(to, new_name)?;
        let found = src.found.as_ref().ok_or(Errno::NOENT)?;
        if !src.is_ready(work.source.as_ref()) || (work.is_trial && !src.stands_alone()) {
            return Err(Errno::AGAIN);
        }
        if let Some(target) = &dst.found {
            if flags.contains(RenameFlags::NOREPLACE) {
                return Err(Errno::EXIST);
            }
            let same = (target.stat.dev, target.stat.ino) == (found.stat.dev, found.stat.ino);
            if same && target.object_layer() == 0 {
                // Two names of one file, or one name: nothing happens, says POSIX.
                return Ok(());
            }
        }
        Self::check_loop(&src, to)?;
        names.unsettle();
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let _noted = journal::active().map(|journal| {
            let (source, target) = ((from.id, name.bytes()), (to.id, new_name.bytes()));
            journal.rename(source, target, exchange)
        });
        if flags.contains(RenameFlags::EXCHANGE) {
            Self::check_loop(&dst, from)?;
            return self.exchange(&src, &dst, work);
        }
        let left = self.replace(&src, &mut dst, flags.contains(RenameFlags::WHITEOUT), work)?;
        if let Some(left) = left {
            names.note(&src, &dst, left);
        }
        Ok(())
    }

    fn side<'a>(&'a self, parent: &'a Arc<Inode>, name: Name<'a>) -> Result<Side<'a>> {
        let found = self.find(parent, name)?.map(|f| f.found);
        let (state, in_lower) = self.standing(parent, name, found.as_ref())?;
        let known = found.as_ref().and_then(|f| self.known(parent, name, f));
        let inode = known.as_ref().map(|k| Arc::clone(&k.inode));
        Ok(Side {
            parent,
            name,
            fd: self.dir_fd(parent, 0)?,
            inode,
            _known: known,
            found,
            state,
            in_lower,
        })
    }

    /// A directory cannot move into itself.
    fn check_loop(moved: &Side<'_>, into: &Arc<Inode>) -> Result<()> {
        let Some(moved) = moved.inode.as_ref().filter(|_| moved.is_dir()) else {
            return Ok(());
        };
        let mut next = Some(Arc::clone(into));
        while let Some(dir) = next {
            if Arc::ptr_eq(&dir, moved) {
                return Err(Errno::INVAL);
            }
            next = dir.alias().map(|a| a.parent);
        }
        Ok(())
    }

    fn exchange<'a>(&'a self, src: &Side<'_>, dst: &Side<'_>, work: &mut Work<'a>) -> Result<()> {
        if dst.found.is_none() {
            return Err(Errno::NOENT);
        }
        if !dst.is_ready(work.target.as_ref()) {
            return Err(Errno::AGAIN);
        }
        let there = self.make_movable(src, dst, work.source.as_mut(), &mut work.no_redirect)?;
        let back = self.make_movable(dst, src, work.target.as_mut(), &mut work.no_redirect)?;
        self.mark_target(src, dst)?;
        self.mark_target(dst, src)?;
        // A marker beside the new place would make a redirected directory opaque.
        for (fate, side) in [(&there, dst), (&back, src)] {
            if fate.is_redirected() && side.state.marker {
                self.settle_marker(side)?;
            }
        }
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        sys::at::rename_at(&*src.fd, from, &*dst.fd, to, RenameFlags::EXCHANGE)?;
        journal::note_exchanged();
        self.moved(src, dst, there, work.source.as_mut());
        self.moved(dst, src, back, work.target.as_mut());
        Ok(())
    }

    /// Marks the directory that a copy with a number of its own comes into.
    fn mark_target(&self, moved: &Side<'_>, into: &Side<'_>) -> Result<()> {
        let keeps = match &moved.inode {
            // One of the lowers has just been given its copy.
            Some(inode) => inode.keeps_ino() || inode.layer() > 0,
            None => dir_of(moved.parent)?.has_copies(),
        };
        if keeps {
            self.mark_copies(into.parent, into.fd.as_fd())
        } else {
            Ok(())
        }
    }

    /// Returns what is known of the source's name afterwards, if nothing out of the ordinary was to be
    /// done.
    fn replace<'a>(
        &'a self, src: &Side<'_>, dst: &mut Side<'_>, want_whiteout: bool, work: &mut Work<'a>,
    ) -> Result<Option<Left>> {
        let upper = self.upper()?;
        match (src.is_dir(), dst.found.as_ref().map(|_| dst.is_dir())) {
            (true, Some(false)) => return Err(Errno::NOTDIR),
            (false, Some(true)) => return Err(Errno::ISDIR),
            _ => {}
        }
        let mut dst_marker = dst.state.marker;
        let losing = match &dst.found {
            Some(found) => self.losing(dst.parent, dst.name, found)?,
            None => None,
        };
        let leaving = match &dst.found {
            None => None,
            Some(found) => {
                if found.stat.kind().is_dir() {
                    let inode = dst.inode.as_ref();
                    if !self.is_empty(dst.parent, dst.name, found, inode)? {
                        let places = [(src.parent, src.name), (dst.parent, dst.name)];
                        return Err(self.not_empty(&places));
                    }
                    dst_marker |= self.clear_victim(upper, dst)?;
                }
                let (inode, last) = (dst.inode.clone(), losing.as_ref().map(|l| l.last));
                let leaving = Leaving::prepare(self, dst.parent, dst.name, inode, found, last);
                Some(leaving?)
            }
        };
        if dst.state.whiteout_entry && src.is_dir() {
            self.settle_whiteout(dst)?;
        }
        let fate = self.make_movable(src, dst, work.source.as_mut(), &mut work.no_redirect)?;
        self.mark_target(src, dst)?;
        let hides = dst_marker || (src.is_dir() && dst.hides_something());
        let is_plain = matches!(fate, Fate::None) && !hides && !dst.is_dir();
        let mut left = None;
        let hide = src.in_lower || want_whiteout;
        let losing = losing.map(|losing| (losing, dst.parent, dst.name));
        if fate.is_redirected() {
            if dst_marker {
                // Beside the new place it would make the directory opaque.
                self.settle_marker(dst)?;
                dst.state.whiteout_entry |= dst.state.real.is_none();
                dst_marker = false;
            }
            match Self::rename_redirected(src, dst, hide) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    // No whiteout can be left in the same step.
                    work.no_redirect = true;
                    return Err(Errno::AGAIN);
                }
                result => result?,
            }
        } else {
            left = self.lose(losing, false, || {
                Self::rename_in_upper(upper, src, dst, hide)
            })?;
        }
        if dst_marker && let Err(e) = upper.remove_marker(dst.fd.as_fd(), dst.name.bytes()) {
            // The object wins over its whiteout: right, only untidy.
            tracing::warn!("a whiteout beside a renamed object could not be removed: {e}");
        }
        if let Some(leaving) = leaving {
            if dst.is_dir() {
                Self::subdir_changed(dst.parent, false);
            }
            leaving.done(self);
        }
        self.moved(src, dst, fate, work.source.as_mut());
        Ok(left.filter(|_| is_plain))
    }
}

/// True when `dir` is the directory `name` of `parent`, or below it.
fn is_within(dir: &Arc<Inode>, parent: &Arc<Inode>, name: Name<'_>) -> bool {
    let mut next = dir.alias();
    while let Some(alias) = next {
        if Arc::ptr_eq(&alias.parent, parent) && *alias.name == *name.bytes() {
            return true;
        }
        next = alias.parent.alias();
    }
    false
}
