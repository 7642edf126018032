//! Making objects: files, directories, nodes, symlinks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, RenameFlags};

use crate::layer::name::Name;
use crate::layer::upper::{DEFAULT_ACL, Temp};
use crate::sys::cred::Creds;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::inode::{DirPart, DirStack};
use super::inode_table::Found;
use super::lookup::{FoundDir, InUpper, dir_of};
use super::types::{Caller, Entry, Make, OpenMode};

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
        let creds = caller.creds(umask);
        let (entry, _) = self.make_in(parent, name, creds, |dir, name| {
            match make {
                Make::Node { mode, rdev } => sys::at::mknod_at(dir, name, mode, rdev)?,
                Make::Directory { mode } => sys::at::mkdir_at(dir, name, mode)?,
                Make::Symlink { target } => sys::at::symlink_at(target, dir, name)?,
            }
            Ok(None)
        })?;
        Ok(entry)
    }

    /// Makes a regular file and opens it; an existing one is opened unless `exclusive`.
    ///
    /// # Errors
    /// As [`Self::make`] and [`Self::open`].
    pub fn create(
        &self, parent: u64, name: &[u8], mode: u32, exclusive: bool, open: OpenMode,
        caller: Caller, umask: u32,
    ) -> Result<Entry> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let made = self.make_in(parent, name, caller.creds(umask), |dir, name| {
            sys::at::open_at(dir, name, flags, mode & 0o7777, false).map(Some)
        });
        match made {
            Ok((entry, file)) => {
                if let (Ok(inode), Some(file)) = (self.inodes.get(entry.id), file) {
                    self.keep_file(&inode, file);
                }
                Ok(entry)
            }
            // It came into being after the caller had looked.
            Err(Errno::EXIST) if !exclusive => {
                let entry = self.lookup(parent, name)?.ok_or(Errno::NOENT)?;
                self.open(entry.id, open, caller)
                    .inspect_err(|_| self.forget(entry.id, 1))?;
                Ok(entry)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes an object with `make`, which gets a directory and a name, in place of nothing or of
    /// a whiteout.
    fn make_in(
        &self, parent: u64, name: &[u8], creds: Creds,
        make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<Option<OwnedFd>>,
    ) -> Result<(Entry, Option<OwnedFd>)> {
        let parent = self.inodes.get(parent)?;
        let dir = dir_of(&parent)?;
        self.upper()?;
        let name = Name::creatable(name)?;
        if parent.is_unlinked() {
            return Err(Errno::NOENT);
        }
        self.ensure_upper(&parent, Need::All)?;
        let _tree = self.tree.read();
        let _names = dir.write_names();
        if parent.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let state = self.in_upper_dir(&parent, name)?;
        if state.real.is_some() || (!state.is_whiteout() && self.in_lower(&parent, name)?) {
            return Err(Errno::EXIST);
        }
        let fd = self.dir_fd(&parent, 0)?;
        let file = self.make_at(fd.as_fd(), name, state, creds, make)?;
        let stat = sys::stat::stat_at(&*fd, name.bytes())?;
        self.finish_whiteout(fd.as_fd(), name, state, &stat)?;
        // Nothing below shows through: that was checked, or is hidden by the mark it got.
        let part = DirPart::new_upper();
        let stack = stat.kind().is_dir().then(|| DirStack::from_slice(&[part]));
        let found = Found {
            layer: 0,
            stat,
            stack,
            ino: None,
        };
        Ok((
            self.intern(
                &parent,
                name,
                FoundDir {
                    found,
                    handle: None,
                },
            ),
            file,
        ))
    }

    /// Makes the object at its place.
    ///
    /// A whiteout file beside the name goes only afterwards (the object hides what is below while
    /// both are there); a whiteout at the name itself is replaced in one step.
    fn make_at(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, creds: Creds,
        mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<Option<OwnedFd>>,
    ) -> Result<Option<OwnedFd>> {
        let mut make = |dir: BorrowedFd<'_>, name: &[u8]| {
            let _caller = sys::cred::enter(creds)?;
            self.with_descriptors(|| make(dir, name))
        };
        if !state.whiteout_entry {
            return make(parent, name.bytes());
        }
        let stage = self.stage(parent)?;
        let open = || sys::at::open_dir_path(stage.dir(), stage.name(), true);
        let stage_dir = self.with_descriptors(open)?;
        let file = make(stage_dir.as_fd(), b"x")?;
        let mut flags = RenameFlags::empty();
        if sys::stat::stat_at(&stage_dir, b"x")?.kind().is_dir() {
            self.upper()?.set_opaque(stage_dir.as_fd(), b"x")?;
            flags = RenameFlags::EXCHANGE;
        }
        sys::at::rename_at(&stage_dir, b"x", parent, name.bytes(), flags)?;
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
        if let Some(acl) = sys::xattr::get(parent, b"", DEFAULT_ACL)? {
            sys::xattr::set(stage.dir(), stage.name(), DEFAULT_ACL, &acl, 0)?;
        }
        Ok(stage)
    }

    /// Removes the whiteout file that the new object makes void; a directory first gets the mark
    /// that goes on hiding what is below.
    fn finish_whiteout(
        &self, parent: BorrowedFd<'_>, name: Name<'_>, state: InUpper, stat: &Stat,
    ) -> Result<()> {
        let upper = self.upper()?;
        if !state.marker {
            if stat.kind().is_dir() && upper.always_opaque() {
                // It says nothing that is not so: a failure only leaves it out.
                let _ = upper.set_opaque(parent, name.bytes());
            }
            return Ok(());
        }
        if stat.kind().is_dir()
            && !state.whiteout_entry
            && let Err(e) = upper.set_opaque(parent, name.bytes())
        {
            // Nothing was shown yet: take the directory back.
            let _ = sys::at::rmdir_at(parent, name.bytes());
            return Err(e);
        }
        if let Err(e) = upper.remove_marker(parent, name.bytes()) {
            // The object counts as opaque while its whiteout is there: right, only untidy.
            tracing::warn!("a whiteout beside a new object could not be removed: {e}");
        }
        Ok(())
    }
}
