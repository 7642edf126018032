//! The steps of a rename on disk.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::whiteout_of;
use crate::layer::remove_tree::empty_tree;
use crate::layer::{opaque, origin, upper::Upper};
use crate::options::WhiteoutForm;
use crate::sys::{self, Errno, Result};

use super::Union;
use super::names::Info;
use super::rename::Side;
use super::rename_names::Left;

impl Union {
    /// Replaces the victim directory, which shows nothing but may hold markers, by one that is
    /// empty on disk and hides the same. Returns whether a whiteout file was added for that.
    pub(super) fn clear_victim(&self, upper: &Upper, dst: &Side<'_>) -> Result<bool> {
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
        let own = || self.inodes.numbers.of(stat.dev, stat.ino);
        let number = match &dst.inode {
            Some(inode) => inode.ino(),
            None => origin::recorded(old.as_fd(), b"", stat.ino)?.unwrap_or_else(own),
        };
        let clean = upper.temp(|dir, temp| sys::at::mkdir_at(dir, temp, 0o700))?;
        let stat = self.owners.recorded(0, old.as_fd(), b"", stat)?;
        let from = (0, old.as_fd(), &b""[..]);
        self.copy_attributes(from, (clean.dir(), clean.name()), &stat, None)?;
        let use_marker = upper.form() == WhiteoutForm::Aufs && whiteout_of(name).is_some();
        let added = dst.in_lower && use_marker;
        if added {
            upper.write_whiteout(parent, name, true)?;
        } else if dst.in_lower {
            opaque::set_attr(clean.dir(), clean.name())?;
        }
        let new = sys::stat::stat_at(clean.dir(), clean.name())?;
        // It may stay, if the rename comes to nothing; users know it by the old one's number.
        origin::record(clean.dir(), clean.name(), number, new.ino)?;
        self.mark_copies(dst.parent, parent)?;
        match clean.publish(parent, name, RenameFlags::EXCHANGE) {
            // A filesystem without exchanges. What the directory hides is hidden by then, so its
            // markers can go one by one.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                if dst.in_lower && !added {
                    opaque::set_attr(parent, name)?;
                }
                Self::stands_alone(dst);
                empty_tree(&Arc::new(old))?;
                return Ok(added);
            }
            result => result?,
        }
        if let Some(inode) = &dst.inode {
            self.forget_dir_fd(inode, 0);
            Self::stands_alone(dst);
            self.inodes
                .rekey(inode, self.inodes.numbers.of(new.dev, new.ino), false);
        }
        Ok(added)
    }

    /// The victim hides what is below it from now on, whether or not the rename comes to its end.
    fn stands_alone(dst: &Side<'_>) {
        if let Some(dir) = dst.inode.as_ref().and_then(|inode| inode.dir.as_ref()) {
            dir.stack.write().truncate(1);
            dir.forget_names();
        }
    }

    /// The renaming itself, with a whiteout left at the source when `hide`. Returns what is known of
    /// the source's name then, if that is sure.
    pub(super) fn rename_in_upper(
        upper: &Upper, src: &Side<'_>, dst: &Side<'_>, hide: bool,
    ) -> Result<Option<Left>> {
        if !dst.state.whiteout_entry || !src.is_dir() {
            return Self::rename_or_replace(upper, src, dst, hide);
        }
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        // A directory cannot replace the whiteout device; they change places.
        match sys::at::rename_at(&*src.fd, from, &*dst.fd, to, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if whiteout_of(to).is_some() => {}
            result => {
                result?;
                if !hide && let Err(e) = sys::at::unlink_at(&*src.fd, from) {
                    tracing::warn!("a needless whiteout could not be removed: {e}");
                }
                return Ok(None);
            }
        }
        upper.device_to_marker(dst.fd.as_fd(), to)?;
        if let Err(e) = Self::rename_or_replace(upper, src, dst, hide) {
            upper.marker_to_device(dst.fd.as_fd(), to);
            return Err(e);
        }
        if let Err(e) = upper.remove_marker(dst.fd.as_fd(), to) {
            // The directory counts as opaque, which it is.
            tracing::warn!("a whiteout beside a renamed directory could not be removed: {e}");
        }
        Ok(None)
    }

    fn rename_or_replace(
        upper: &Upper, src: &Side<'_>, dst: &Side<'_>, hide: bool,
    ) -> Result<Option<Left>> {
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        let rename = |flags| sys::at::rename_at(&*src.fd, from, &*dst.fd, to, flags);
        let marked = Some(Info::hidden(false, true, src.in_lower));
        if !hide || src.state.marker {
            // A whiteout file that is already there goes on hiding what is below.
            rename(RenameFlags::empty())?;
            return Ok(Some(marked.filter(|_| src.state.marker)));
        }
        let undo = || {
            // An object beside its whiteout shows all the same.
            let _ = upper.remove_marker(src.fd.as_fd(), from);
        };
        let can_mark = whiteout_of(from).is_some();
        if upper.form() == WhiteoutForm::Aufs && can_mark {
            upper.write_marker_beside(src.fd.as_fd(), from)?;
            rename(RenameFlags::empty()).inspect_err(|_| undo())?;
            return Ok(Some(marked));
        }
        sys::cred::enter_own();
        match rename(RenameFlags::WHITEOUT) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if can_mark => {}
            result => {
                result?;
                return Ok(Some(Some(Info::hidden(true, false, src.in_lower))));
            }
        }
        // A filesystem without RENAME_WHITEOUT: a whiteout file bridges the moment.
        upper.write_marker_beside(src.fd.as_fd(), from)?;
        rename(RenameFlags::empty()).inspect_err(|_| undo())?;
        // The rename is done, and the file hides as well as the device that would replace it.
        let tidy = upper.write_whiteout(src.fd.as_fd(), from, false);
        if let Err(e) = tidy.and_then(|_| upper.remove_marker(src.fd.as_fd(), from)) {
            tracing::warn!("a whiteout file could not be replaced by a device: {e}");
        }
        Ok(None)
    }

    /// The renaming of a redirected directory, with a whiteout left at the source when `hide`.
    ///
    /// In one step: a whiteout file beside the directory would make it opaque for a moment.
    pub(super) fn rename_redirected(src: &Side<'_>, dst: &Side<'_>, hide: bool) -> Result<()> {
        let (from, to) = (src.name.bytes(), dst.name.bytes());
        let rename = |flags| sys::at::rename_at(&*src.fd, from, &*dst.fd, to, flags);
        sys::cred::enter_own();
        if dst.state.whiteout_entry {
            // They change places, so the whiteout hides what is below the source.
            rename(RenameFlags::EXCHANGE)?;
            if !hide && let Err(e) = sys::at::unlink_at(&*src.fd, from) {
                tracing::warn!("a needless whiteout could not be removed: {e}");
            }
            return Ok(());
        }
        rename(if hide {
            RenameFlags::WHITEOUT
        } else {
            RenameFlags::empty()
        })
    }

    /// Makes the whiteout at a name one that hides at any place: a whiteout by attribute does so
    /// only in directories that are marked for it.
    pub(super) fn settle_whiteout(&self, side: &Side<'_>) -> Result<()> {
        let (parent, name) = (side.fd.as_fd(), side.name.bytes());
        if sys::stat::stat_at(parent, name)?.is_whiteout_device() {
            return Ok(());
        }
        self.upper()?.replace_by_device(parent, name)
    }

    /// Replaces the whiteout file beside a name by what hides the same without it.
    pub(super) fn settle_marker(&self, side: &Side<'_>) -> Result<()> {
        let upper = self.upper()?;
        let (parent, name) = (side.fd.as_fd(), side.name.bytes());
        match side.state.real {
            None => upper.write_device(parent, name),
            Some(stat) => {
                if stat.kind().is_dir() {
                    // By attribute: with a file in it a directory could not be replaced.
                    opaque::set_attr(parent, name)?;
                }
                upper.remove_marker(parent, name)
            }
        }
    }
}
