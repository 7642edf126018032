//! Hard links.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::Name;
use crate::sys::{self, Errno, Result};

use super::Union;
use super::copy_up::Need;
use super::find::FoundDir;
use super::inode::Inode;
use super::inode_table::Found;
use super::lookup::dir_of;
use super::names::Info;
use super::types::Entry;

/// How often another name of a file is tried when one goes just as it is to be linked to.
const TRIES: usize = 100;

impl Union {
    /// Makes a link to the real object, by whichever of its names is there.
    ///
    /// Precondition: the tree lock is held.
    fn link_real(&self, inode: &Arc<Inode>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let mut tries = 0;
        loop {
            let real = self.real(inode)?;
            let result = if real.name.is_empty() {
                sys::at::link_fd(real.fd(), dir, name)
            } else {
                sys::at::link_at(real.fd(), &real.name, dir, name)
            };
            // Somebody is taking away this name, and has not said so yet. There may be others.
            if result != Err(Errno::NOENT) || inode.is_unlinked() || tries == TRIES {
                return result;
            }
            tries += 1;
            std::thread::yield_now();
        }
    }

    /// Gives a file another name; a file of a lower is copied up first.
    ///
    /// # Errors
    /// EEXIST, EPERM for a directory or a reserved name, ENOENT for a file without a name, EROFS,
    /// and what the calls on the upper give.
    pub fn link(&self, id: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry> {
        let inode = self.inodes.get(id)?;
        let parent = self.inodes.get(new_parent)?;
        let dir = dir_of(&parent)?;
        let upper = self.upper()?;
        let name = Name::creatable(new_name)?;
        if inode.kind.is_dir() {
            return Err(Errno::PERM);
        }
        if inode.is_unlinked() || parent.is_unlinked() {
            return Err(Errno::NOENT);
        }
        self.ensure_upper(&parent, Need::All)?;
        self.ensure_upper(&inode, Need::All)?;
        self.pin_data(&inode)?;
        let _tree = self.tree.read();
        let names = dir.write_names();
        names.unchanged();
        let state = self.vacancy(&parent, name)?;
        names.unsettle();
        let fd = self.dir_fd(&parent, 0)?;
        // The last other name must not go just now, and the entry with it.
        let changing = inode.is_plinked().then(|| self.plinks.change());
        if inode.is_unlinked() {
            return Err(Errno::NOENT);
        }
        let link =
            |dir: std::os::fd::BorrowedFd<'_>, name: &[u8]| self.link_real(&inode, dir, name);
        if inode.keeps_ino() {
            self.mark_copies(&parent, fd.as_fd())?;
        }
        if state.whiteout_entry {
            sys::cred::enter_own();
            upper
                .temp(link)?
                .publish(&*fd, name.bytes(), RenameFlags::empty())?;
        } else {
            link(fd.as_fd(), name.bytes())?;
        }
        let mut is_tidy = true;
        if state.marker
            && let Err(e) = upper.remove_marker(fd.as_fd(), name.bytes())
        {
            // The name wins over its whiteout: right, only untidy.
            tracing::warn!("a whiteout beside a new link could not be removed: {e}");
            is_tidy = false;
        }
        let stat = sys::stat::stat_at(&*fd, name.bytes())?;
        let stat = self.owners.recorded(0, fd.as_fd(), name.bytes(), stat)?;
        drop(changing);
        let plink = inode.is_plinked().then(|| inode.ino());
        let found = Found::single(0, stat, None).with_plink(plink);
        if is_tidy && !inode.by_name {
            names.note(name.bytes(), |old| {
                let in_lower = old.is_some_and(|old| old.in_lower);
                Some(Info::in_upper(inode.kind, inode.ino(), in_lower))
            });
        }
        Ok(self.intern(
            &parent,
            name,
            FoundDir {
                found,
                handle: None,
            },
        ))
    }
}
