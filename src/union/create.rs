//! Making objects: files, directories, nodes, symlinks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, RenameFlags};

use crate::layer::Upper;
use crate::layer::name::Name;
use crate::layer::upper::{DEFAULT_ACL, Temp};
use crate::sys::cred::Creds;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::find::{FoundDir, InUpper};
use super::inode::{DirPart, DirStack, Inode};
use super::inode_table::Found;
use super::lookup::dir_of;
use super::names::Info;
use super::types::{Caller, Entry, Make};

/// What is to be made, and whether a regular file is opened by that.
#[derive(Clone, Copy, Debug)]
struct New<'a> {
    make: Make<'a>,
    open: bool,
}

impl New<'_> {
    /// Makes it in one call, with the ids and umask of the thread.
    fn make_at(self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>> {
        match self.make {
            Make::Node { mode, .. } if self.open => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                return sys::at::open_at(dir, name, flags, mode & 0o7777, false).map(Some);
            }
            Make::Node { mode, rdev } => sys::at::mknod_at(dir, name, mode, rdev)?,
            Make::Directory { mode } => sys::at::mkdir_at(dir, name, mode)?,
            Make::Symlink { target } => sys::at::symlink_at(target, dir, name)?,
        }
        Ok(None)
    }

    /// Makes the real object of one with a record.
    fn make_plain(self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>> {
        let make = match self.make {
            Make::Node { .. } => Make::Node {
                mode: libc::S_IFREG | 0o600,
                rdev: 0,
            },
            Make::Directory { .. } => Make::Directory { mode: 0o700 },
            Make::Symlink { target } => Make::Symlink { target },
        };
        Self { make, ..self }.make_at(dir, name)
    }

    /// Owner, type and mode as the backing filesystem would give them to the caller in a directory
    /// with the attributes `above`.
    fn own(self, stat: &mut Stat, creds: Creds, above: &Stat) {
        let inherits = above.mode & libc::S_ISGID != 0;
        stat.uid = creds.uid;
        stat.gid = if inherits { above.gid } else { creds.gid };
        match self.make {
            Make::Symlink { .. } => {}
            Make::Node { mode, rdev } => {
                stat.mode = mode & !creds.umask;
                stat.rdev = rdev;
                // mknod(2) takes no type for a regular file.
                if mode & libc::S_IFMT == 0 {
                    stat.mode |= libc::S_IFREG;
                }
            }
            Make::Directory { mode } => {
                stat.mode = libc::S_IFDIR | (mode & 0o1777 & !creds.umask);
                if inherits {
                    stat.mode |= libc::S_ISGID;
                }
            }
        }
    }
}

impl Union {
    /// Makes an object. Owner, mode, umask, set-group-id directories and default ACLs work as on
    /// the backing filesystem.
    ///
    /// # Errors
    /// EEXIST, EPERM for a reserved name or a device that would be a whiteout, EROFS, and what
    /// the call on the upper gives.
    pub fn make(
        &self, parent: u64, name: &[u8], make: Make<'_>, caller: Caller, umask: u32,
    ) -> Result<Entry> {
        if let Make::Node { mode, rdev: 0 } = make
            && FileKind::from_mode(mode) == FileKind::CharDevice
        {
            return Err(Errno::PERM);
        }
        let (entry, _) = self.make_in(parent, name, New { make, open: false }, caller, umask)?;
        Ok(entry)
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// As [`Self::make`]; where there is an object, and not `exclusive`, ESTALE: it came into being
    /// after the caller had looked, who has to look again and check what he may do with it.
    pub fn create(
        &self, parent: u64, name: &[u8], mode: u32, exclusive: bool, caller: Caller, umask: u32,
    ) -> Result<Entry> {
        let make = Make::Node {
            mode: libc::S_IFREG | (mode & 0o7777),
            rdev: 0,
        };
        let made = self.make_in(parent, name, New { make, open: true }, caller, umask);
        match made {
            Ok((entry, file)) => {
                if let (Ok(inode), Some(file)) = (self.inodes.get(entry.id), file) {
                    self.keep_file(&inode, file);
                }
                Ok(entry)
            }
            Err(Errno::EXIST) if !exclusive => {
                // Somebody else changes the layers: what is known of the names may be wrong.
                let parent = self.inodes.get(parent)?;
                let _tree = self.tree.read();
                drop(dir_of(&parent)?.write_names());
                Err(Errno::STALE)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes an object in place of nothing or of a whiteout.
    fn make_in(
        &self, parent: u64, name: &[u8], new: New<'_>, caller: Caller, umask: u32,
    ) -> Result<(Entry, Option<OwnedFd>)> {
        let parent = self.inodes.get(parent)?;
        let dir = dir_of(&parent)?;
        self.upper()?;
        let name = Name::creatable(name)?;
        if parent.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let umask = match new.make {
            // A symlink's mode is always the same.
            Make::Symlink { .. } => sys::cred::present_umask(),
            _ => umask,
        };
        let creds = self.owners.creds(caller, umask)?;
        self.ensure_upper(&parent, Need::All)?;
        let _tree = self.tree.read();
        let names = dir.write_names();
        names.unchanged();
        if parent.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let state = self.vacancy(&parent, name)?;
        names.unsettle();
        let fd = self.dir_fd(&parent, 0)?;
        let file = if self.owners.keeps_records() {
            self.make_recorded(fd.as_fd(), name, state, creds, new)?
        } else {
            self.make_at(fd.as_fd(), name, state, creds, new)?
        };
        let stat = match &file {
            Some(file) => sys::stat::fstat(file)?,
            None => sys::stat::stat_at(&*fd, name.bytes())?,
        };
        let stat = self.owners.recorded(0, fd.as_fd(), name.bytes(), stat)?;
        let is_tidy = self.finish_whiteout(fd.as_fd(), name, state, &stat)?;
        let stat = self.with_mark(fd.as_fd(), name, state, stat);
        if stat.kind().is_dir() {
            Self::subdir_changed(&parent, true);
        }
        // Nothing below shows through: that was checked, or is hidden by the mark it got.
        let part = DirPart::new_upper();
        let stack = stat.kind().is_dir().then(|| DirStack::from_slice(&[part]));
        let ino = self.inodes.numbers.of(stat.dev, stat.ino);
        let mut found = Found::single(0, stat, stack);
        found.ino = Some(ino);
        let found = FoundDir {
            found,
            handle: None,
        };
        let entry = self.intern(&parent, name, found);
        let kind = stat.kind();
        if let Ok(inode) = self.inodes.get(entry.id) {
            let acls = !self.has_acls() || self.gives_acls(&parent, fd.as_fd());
            inode.facts.set_new(acls);
            self.know_empty(&inode);
        }
        // What a directory hides is not told apart from what it is merged with.
        if is_tidy && !(kind.is_dir() && state.is_whiteout()) {
            names.note(name.bytes(), |old| {
                let in_lower = old.is_some_and(|old| old.in_lower);
                Some(Info::in_upper(kind, ino, in_lower))
            });
        }
        Ok((entry, file))
    }

    /// The attributes of a new object once its marks are made: with a file for a mark in it, a directory
    /// has another size on some filesystems.
    fn with_mark(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, mut stat: Stat,
    ) -> Stat {
        let always = self.upper().is_ok_and(Upper::always_opaque);
        let marked = stat.kind().is_dir() && (state.marker || always);
        if marked && let Ok(now) = sys::stat::stat_at(parent, name.bytes()) {
            (stat.size, stat.blocks) = (now.size, now.blocks);
            (stat.mtime, stat.ctime) = (now.mtime, now.ctime);
        }
        stat
    }

    /// Makes the object at its place.
    ///
    /// A whiteout file beside the name goes only afterwards (the object hides what is below while
    /// both are there); a whiteout at the name itself is replaced in one step.
    fn make_at(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, creds: Creds, new: New<'_>,
    ) -> Result<Option<OwnedFd>> {
        let make = |dir: BorrowedFd<'_>, name: &[u8]| {
            let _caller = sys::cred::enter(creds)?;
            self.with_descriptors(|| new.make_at(dir, name))
        };
        if !state.whiteout_entry && !self.has_unwanted_acl(parent)? {
            return make(parent, name.bytes());
        }
        let stage = self.stage(parent)?;
        let open = || sys::at::open_dir_path(stage.dir(), stage.name(), true);
        let stage_dir = self.with_descriptors(open)?;
        let file = make(stage_dir.as_fd(), b"x")?;
        let (from, to) = ((stage_dir.as_fd(), &b"x"[..]), (parent, name.bytes()));
        if state.whiteout_entry && sys::stat::stat_at(from.0, from.1)?.kind().is_dir() {
            let upper = self.upper()?;
            upper.set_opaque(from.0, from.1)?;
            upper.replace_device(from, to)?;
        } else {
            sys::at::rename_at(from.0, from.1, to.0, to.1, over(state))?;
        }
        Ok(file)
    }

    /// True when objects made in a directory may inherit ACLs.
    fn gives_acls(&self, parent: &Inode, fd: BorrowedFd<'_>) -> bool {
        if parent.facts.lacks(DEFAULT_ACL) && !self.rechecks(parent) {
            return false;
        }
        let seen = parent.facts.look();
        let gives = !matches!(sys::xattr::get(fd, b"", DEFAULT_ACL), Ok(None));
        if !gives && !parent.by_name {
            parent.facts.set_lacking(DEFAULT_ACL, seen);
        }
        gives
    }

    /// True when the backing filesystem would give new objects an ACL that no one is to see.
    fn has_unwanted_acl(&self, parent: BorrowedFd<'_>) -> Result<bool> {
        if self.owners.has_acls() {
            return Ok(false);
        }
        Ok(sys::xattr::get(parent, b"", DEFAULT_ACL)?.is_some())
    }

    /// Makes the object out of sight, gives it its record and publishes it: whoever sees it sees
    /// its owner and mode, after a crash too. The real object is the daemon's own.
    fn make_recorded(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, creds: Creds, new: New<'_>,
    ) -> Result<Option<OwnedFd>> {
        let above = self
            .owners
            .recorded(0, parent, b"", sys::stat::fstat(parent)?)?;
        let upper = self.upper()?;
        let mut file = None;
        sys::cred::enter_own();
        let temp = upper.temp(|dir, name| {
            file = self.with_descriptors(|| new.make_plain(dir, name))?;
            Ok(())
        })?;
        let mut stat = sys::stat::stat_at(temp.dir(), temp.name())?;
        new.own(&mut stat, creds, &above);
        self.owners.give(temp.dir(), temp.name(), &stat, None)?;
        self.owners.give_mode(temp.dir(), temp.name(), &stat)?;
        if state.whiteout_entry && stat.kind().is_dir() {
            upper.set_opaque(temp.dir(), temp.name())?;
            temp.publish_over_device(upper, parent, name.bytes())?;
        } else {
            temp.publish(parent, name.bytes(), over(state))?;
        }
        Ok(file)
    }

    /// A hidden directory in which new objects come out as they would in `parent`: same group
    /// inheritance, same default ACL.
    fn stage(&self, parent: BorrowedFd<'_>) -> Result<Temp> {
        let upper = self.upper()?;
        sys::cred::enter_own();
        let stage = upper.temp(|dir, name| sys::at::mkdir_at(dir, name, 0o700))?;
        let stat = sys::stat::fstat(parent)?;
        if stat.mode & libc::S_ISGID != 0 {
            sys::at::chown_at(stage.dir(), stage.name(), None, Some(stat.gid))?;
            sys::at::chmod_at(stage.dir(), stage.name(), 0o2700)?;
        }
        if self.owners.has_acls()
            && let Some(acl) = sys::xattr::get(parent, b"", DEFAULT_ACL)?
        {
            sys::xattr::set(stage.dir(), stage.name(), DEFAULT_ACL, &acl, 0)?;
        }
        Ok(stage)
    }

    /// Removes the whiteout file that the new object makes void; a directory first gets the mark
    /// that goes on hiding what is below. Returns false when the file stays.
    fn finish_whiteout(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, stat: &Stat,
    ) -> Result<bool> {
        let upper = self.upper()?;
        if !state.marker {
            if stat.kind().is_dir() && upper.always_opaque() {
                // It says nothing that is not so: a failure only leaves it out.
                let _ = upper.set_opaque(parent, name.bytes());
            }
            return Ok(true);
        }
        if stat.kind().is_dir()
            && !state.whiteout_entry
            && let Err(e) = upper.set_opaque(parent, name.bytes())
        {
            // Nothing was shown yet: take the directory back. A mark by two steps may have got one.
            let _ = upper.clear_opaque(parent, name.bytes());
            let _ = sys::at::rmdir_at(parent, name.bytes());
            return Err(e);
        }
        if let Err(e) = upper.remove_marker(parent, name.bytes()) {
            // The object counts as opaque while its whiteout is there: right, only untidy.
            tracing::warn!("a whiteout beside a new object could not be removed: {e}");
            return Ok(false);
        }
        Ok(true)
    }
}

/// How a new object takes the place of what is there, but for a directory: over a whiteout only.
fn over(state: InUpper) -> RenameFlags {
    if state.whiteout_entry {
        RenameFlags::empty()
    } else {
        RenameFlags::NOREPLACE
    }
}
