//! Renaming.
//!
//! Order on disk: first what keeps lower objects hidden (the source's whiteout file, the moved
//! directory's opaque mark), then one rename, then what it made void. Before the rename every state
//! shows the old tree, after it the new one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::{Name, whiteout_of};
use crate::layer::{opaque, upper::Upper};
use crate::options::WhiteoutForm;
use crate::sys::{self, Errno, Result};

use super::Union;
use super::copy_up::Need;
use super::inode::Inode;
use super::inode_table::Found;
use super::lookup::{InUpper, Known, dir_of};
use super::remove::Leaving;

/// One side of a rename.
struct Side<'a> {
    parent: &'a Arc<Inode>,
    name: Name<'a>,
    fd: Arc<OwnedFd>,
    found: Option<Found>,
    inode: Option<Arc<Inode>>,
    /// Keeps the inode known until the rename is done.
    _known: Option<Known<'a>>,
    state: InUpper,
    /// A lower shows the name.
    in_lower: bool,
}

impl Side<'_> {
    fn is_dir(&self) -> bool {
        self.found.as_ref().is_some_and(|f| f.stat.kind().is_dir())
    }

    /// Something below must stay hidden if a directory comes here.
    fn hides_something(&self) -> bool {
        self.in_lower || self.state.marker || self.state.whiteout_entry
    }
}

impl Union {
    /// Renames as renameat2(2) does; `flags` are its bits.
    ///
    /// # Errors
    /// EXDEV for a directory with contents in a lower; otherwise as rename(2).
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
        // Copying up happens without locks; should someone replace the source meanwhile, again.
        for _ in 0..8 {
            match self.bring_up(&from, name) {
                // What is wrong with the target comes before what we cannot do.
                Err(Errno::XDEV) if is_within(&to, &from, name) => return Err(Errno::INVAL),
                Err(Errno::XDEV) if exchange && is_within(&from, &to, new_name) => {
                    return Err(Errno::INVAL);
                }
                Err(Errno::XDEV) => return Err(self.refusal(&to, new_name, flags)),
                result => result?,
            }
            if exchange {
                self.bring_up(&to, new_name)?;
            }
            match self.rename_locked(&from, name, &to, new_name, flags) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::BUSY)
    }

    /// Why a directory with lower contents does not move to `name`.
    fn refusal(&self, parent: &Arc<Inode>, name: Name<'_>, flags: RenameFlags) -> Errno {
        let Ok(dir) = dir_of(parent) else {
            return Errno::NOTDIR;
        };
        let _tree = self.tree.read();
        let _names = dir.read_names();
        let Ok(Some(found)) = self.find(parent, name, 0) else {
            return Errno::XDEV;
        };
        let found = found.found;
        let known = self.known(parent, name, &found);
        let inode = known.as_ref().map(|k| &k.inode);
        if flags.contains(RenameFlags::NOREPLACE) {
            return Errno::EXIST;
        }
        if flags.contains(RenameFlags::EXCHANGE) {
            return Errno::XDEV;
        }
        match (
            found.stat.kind().is_dir(),
            self.is_empty(parent, name, &found, inode),
        ) {
            (false, _) => Errno::NOTDIR,
            (true, Ok(false)) => Errno::NOTEMPTY,
            _ => Errno::XDEV,
        }
    }

    /// Copies up the object that is to move; a directory only if nothing of a lower shows in it.
    fn bring_up(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<()> {
        let entry = self.lookup(parent.id, name.bytes())?.ok_or(Errno::NOENT)?;
        let result = self.inodes.get(entry.id).and_then(|inode| {
            if inode.kind.is_dir() && self.shows_lower(&inode)? {
                return Err(Errno::XDEV);
            }
            self.ensure_upper(&inode, Need::All)
        });
        self.forget(entry.id, 1);
        result
    }

    /// True when a lower contributes entries to the directory.
    fn shows_lower(&self, inode: &Arc<Inode>) -> Result<bool> {
        let dir = dir_of(inode)?;
        let _tree = self.tree.read();
        let _names = dir.read_names();
        self.shows_lower_locked(inode)
    }

    fn shows_lower_locked(&self, inode: &Arc<Inode>) -> Result<bool> {
        let stack = inode.stack();
        if stack.iter().all(|part| part.layer == 0) {
            return Ok(false);
        }
        self.lower_contributes(&stack, |layer| self.dir_fd(inode, layer))
    }

    fn rename_locked(
        &self, from: &Arc<Inode>, name: Name<'_>, to: &Arc<Inode>, new_name: Name<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        // Written, not read: no path changes under anyone's feet, and all names stand still.
        let _tree = self.tree.write();
        let (first, second) = if from.serial <= to.serial {
            (from, to)
        } else {
            (to, from)
        };
        let _first = dir_of(first)?.write_names();
        let _second = if Arc::ptr_eq(from, to) {
            None
        } else {
            Some(dir_of(second)?.write_second_names())
        };
        if from.is_unlinked() || to.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let src = self.side(from, name)?;
        let dst = self.side(to, new_name)?;
        let found = src.found.as_ref().ok_or(Errno::NOENT)?;
        if found.layer != 0 {
            return Err(Errno::AGAIN);
        }
        if let Some(target) = &dst.found {
            if flags.contains(RenameFlags::NOREPLACE) {
                return Err(Errno::EXIST);
            }
            let same = (target.stat.dev, target.stat.ino) == (found.stat.dev, found.stat.ino);
            if same && target.layer == 0 {
                // Two names of one file, or one name: nothing happens, says POSIX.
                return Ok(());
            }
        }
        Self::check_loop(&src, to)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            Self::check_loop(&dst, from)?;
            return self.exchange(&src, &dst);
        }
        self.replace(&src, &dst, flags.contains(RenameFlags::WHITEOUT))
    }

    fn side<'a>(&'a self, parent: &'a Arc<Inode>, name: Name<'a>) -> Result<Side<'a>> {
        let found = self.find(parent, name, 0)?.map(|f| f.found);
        let known = found.as_ref().and_then(|f| self.known(parent, name, f));
        let inode = known.as_ref().map(|k| Arc::clone(&k.inode));
        Ok(Side {
            parent,
            name,
            fd: self.dir_fd(parent, 0)?,
            inode,
            _known: known,
            found,
            state: self.in_upper_dir(parent, name)?,
            in_lower: self.in_lower(parent, name)?,
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

    fn exchange(&self, src: &Side<'_>, dst: &Side<'_>) -> Result<()> {
        let target = dst.found.as_ref().ok_or(Errno::NOENT)?;
        if target.layer != 0 {
            return Err(Errno::AGAIN);
        }
        let src_lower = self.make_movable(src, dst)?;
        let dst_lower = self.make_movable(dst, src)?;
        self.mark_target(src, dst)?;
        self.mark_target(dst, src)?;
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        sys::at::rename_at(&*src.fd, from, &*dst.fd, to, RenameFlags::EXCHANGE)?;
        self.moved(src, dst, src_lower);
        self.moved(dst, src, dst_lower);
        Ok(())
    }

    /// Makes a directory stand alone in the upper, if lowers have something at its old or at its
    /// new name.
    ///
    /// Returns whether lowers have a part in it, which ends with the rename.
    fn make_movable(&self, moved: &Side<'_>, there: &Side<'_>) -> Result<bool> {
        let Some(inode) = moved.inode.as_ref().filter(|_| moved.is_dir()) else {
            return Ok(false);
        };
        if self.shows_lower_locked(inode)? {
            return Err(Errno::XDEV);
        }
        if there.hides_something() {
            let upper = self.upper()?;
            let (parent, name) = (moved.fd.as_fd(), moved.name.bytes());
            self.with_descriptors(|| upper.set_opaque(parent, name))?;
        }
        Ok(inode.stack().len() > 1)
    }

    /// The object is at its new place: nothing of the lowers showed in a directory, and there
    /// they have no part in it.
    fn moved(&self, side: &Side<'_>, to: &Side<'_>, has_lower: bool) {
        let Some(inode) = &side.inode else { return };
        if let Some(dir) = inode.dir.as_ref().filter(|_| has_lower) {
            dir.stack.write().truncate(1);
        }
        let lower_path = has_lower.then(|| inode.lower_path());
        let from = (&**side.parent, side.name.bytes());
        if let Some(parent) = inode.move_alias(from, (to.parent, to.name.bytes()), lower_path) {
            self.forget(parent.id, 1);
        }
    }

    /// Marks the directory that a copy with a number of its own comes into.
    fn mark_target(&self, moved: &Side<'_>, into: &Side<'_>) -> Result<()> {
        let keeps = match &moved.inode {
            Some(inode) => inode.keeps_ino(),
            None => dir_of(moved.parent)?.has_copies(),
        };
        if keeps {
            self.mark_copies(into.parent, into.fd.as_fd())
        } else {
            Ok(())
        }
    }

    fn replace(&self, src: &Side<'_>, dst: &Side<'_>, want_whiteout: bool) -> Result<()> {
        let upper = self.upper()?;
        match (src.is_dir(), dst.found.as_ref().map(|_| dst.is_dir())) {
            (true, Some(false)) => return Err(Errno::NOTDIR),
            (false, Some(true)) => return Err(Errno::ISDIR),
            _ => {}
        }
        let mut dst_marker = dst.state.marker;
        let leaving = match &dst.found {
            None => None,
            Some(found) => {
                if found.stat.kind().is_dir() {
                    let inode = dst.inode.as_ref();
                    if !self.is_empty(dst.parent, dst.name, found, inode)? {
                        return Err(Errno::NOTEMPTY);
                    }
                    dst_marker |= self.clear_victim(upper, dst)?;
                }
                let inode = dst.inode.clone();
                Some(Leaving::prepare(self, dst.parent, dst.name, inode, found)?)
            }
        };
        let src_lower = self.make_movable(src, dst)?;
        self.mark_target(src, dst)?;
        let hide = src.in_lower || want_whiteout;
        Self::rename_in_upper(upper, src, dst, hide)?;
        if dst_marker && let Err(e) = upper.remove_marker(dst.fd.as_fd(), dst.name.bytes()) {
            // The object wins over its whiteout: right, only untidy.
            tracing::warn!("a whiteout beside a renamed object could not be removed: {e}");
        }
        if let Some(leaving) = leaving {
            leaving.done(self);
        }
        self.moved(src, dst, src_lower);
        Ok(())
    }

    /// Replaces the victim directory, which shows nothing but may hold markers, by one that is
    /// empty on disk and hides the same. Returns whether a whiteout file was added for that.
    fn clear_victim(&self, upper: &Upper, dst: &Side<'_>) -> Result<bool> {
        let Some(stat) = dst.state.real else {
            return Ok(false);
        };
        let (parent, name) = (dst.fd.as_fd(), dst.name.bytes());
        let old = self.with_descriptors(|| sys::at::open_dir_path(parent, name, true))?;
        let readable = self.with_descriptors(|| sys::fd::reopen_dir(&old))?;
        let mut has_content = false;
        sys::dir::for_each_entry(&readable, |_| {
            has_content = true;
            Ok(())
        })?;
        if !has_content {
            return Ok(false);
        }
        sys::cred::enter_own();
        let clean = upper.temp(|dir, temp| sys::at::mkdir_at(dir, temp, 0o700))?;
        let stat = self.owners.recorded(0, old.as_fd(), b"", stat)?;
        self.copy_attributes(0, (old.as_fd(), b""), (clean.dir(), clean.name()), &stat)?;
        let use_marker = upper.form() == WhiteoutForm::Aufs && whiteout_of(name).is_some();
        let added = dst.in_lower && use_marker;
        if added {
            upper.write_whiteout(parent, name, true)?;
        } else if dst.in_lower {
            opaque::set_attr(clean.dir(), clean.name())?;
        }
        let new = sys::stat::stat_at(clean.dir(), clean.name())?;
        clean.publish(parent, name, RenameFlags::EXCHANGE)?;
        if let Some(inode) = &dst.inode {
            self.forget_dir_fd(inode, 0);
            // It stands alone on disk from now on, whether or not the rename comes to its end.
            if let Some(dir) = &inode.dir {
                dir.stack.write().truncate(1);
            }
            self.inodes
                .rekey(inode, self.inodes.numbers.of(new.dev, new.ino), false);
        }
        Ok(added)
    }

    /// The renaming itself, with a whiteout left at the source when `hide`.
    fn rename_in_upper(upper: &Upper, src: &Side<'_>, dst: &Side<'_>, hide: bool) -> Result<()> {
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        let rename = |flags| sys::at::rename_at(&*src.fd, from, &*dst.fd, to, flags);
        if dst.state.whiteout_entry && src.is_dir() {
            // A directory cannot replace the whiteout device; they change places.
            rename(RenameFlags::EXCHANGE)?;
            if !hide && let Err(e) = sys::at::unlink_at(&*src.fd, from) {
                tracing::warn!("a needless whiteout could not be removed: {e}");
            }
            return Ok(());
        }
        if !hide || src.state.marker {
            // A whiteout file that is already there goes on hiding what is below.
            return rename(RenameFlags::empty());
        }
        let undo = || {
            // An object beside its whiteout shows all the same.
            let _ = upper.remove_marker(src.fd.as_fd(), from);
        };
        let can_mark = whiteout_of(from).is_some();
        if upper.form() == WhiteoutForm::Aufs && can_mark {
            upper.write_marker_beside(src.fd.as_fd(), from)?;
            return rename(RenameFlags::empty()).inspect_err(|_| undo());
        }
        sys::cred::enter_own();
        match rename(RenameFlags::WHITEOUT) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if can_mark => {}
            result => return result,
        }
        // A filesystem without RENAME_WHITEOUT: a whiteout file bridges the moment.
        upper.write_marker_beside(src.fd.as_fd(), from)?;
        rename(RenameFlags::empty()).inspect_err(|_| undo())?;
        // The rename is done, and the file hides as well as the device that would replace it.
        let tidy = upper.write_whiteout(src.fd.as_fd(), from, false);
        if let Err(e) = tidy.and_then(|_| upper.remove_marker(src.fd.as_fd(), from)) {
            tracing::warn!("a whiteout file could not be replaced by a device: {e}");
        }
        Ok(())
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
