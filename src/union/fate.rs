//! What becomes of a directory's parts in the lowers when it moves.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::layer::{elsewhere, opaque};
use crate::options::RenameDir;
use crate::sys::{Errno, Result};

use super::Union;
use super::complete::Completion;
use super::inode::Inode;
use super::published::Published;
use super::rename::Side;

/// See the module text.
pub(super) enum Fate<'a> {
    /// There are none.
    None,
    /// They show nothing, and end.
    End,
    /// The upper has copies of all that they show. What was done for that is undone when this is
    /// dropped.
    Copied(Box<Published<'a>>),
    /// They stay, and the directory says where.
    Redirected,
}

impl Fate<'_> {
    pub fn is_redirected(&self) -> bool {
        matches!(self, Self::Redirected)
    }
}

impl Union {
    /// Makes a directory ready to move to `there`: it stands alone in the upper, or says where the
    /// rest of it is. Users see no difference.
    ///
    /// Precondition: the tree lock and the names of both parents are written.
    ///
    /// # Errors
    /// EAGAIN when it is not complete, or if it cannot be redirected, which is noted then.
    pub(super) fn make_movable<'a>(
        &'a self, moved: &Side<'_>, there: &Side<'_>, completion: Option<&mut Completion<'a>>,
        no_redirect: &mut bool,
    ) -> Result<Fate<'a>> {
        let Some(inode) = moved.inode.as_ref().filter(|_| moved.is_dir()) else {
            return Ok(Fate::None);
        };
        if inode.stack().iter().all(|part| part.layer == 0) && self.in_upper(inode) {
            self.hide_below(moved, there)?;
            return Ok(if Self::end_redirect(moved)? {
                Fate::End
            } else {
                Fate::None
            });
        }
        let completion = completion.filter(|c| c.is_for(inode));
        if let Some(completion) = completion {
            let mut published = completion.publish()?;
            if there.hides_something() {
                published.set_opaque(&moved.fd, moved.name.bytes())?;
            }
            return Ok(Fate::Copied(Box::new(published)));
        }
        if !self.shows_lower_locked(inode)? {
            self.hide_below(moved, there)?;
            Self::end_redirect(moved)?;
            return Ok(Fate::End);
        }
        if self.elsewhere.rename_dir != RenameDir::Redirect {
            // It began to show something just now.
            return Err(Errno::AGAIN);
        }
        if *no_redirect || self.record_redirect(moved, there, inode).is_err() {
            *no_redirect = true;
            return Err(Errno::AGAIN);
        }
        Ok(Fate::Redirected)
    }

    /// Marks a directory of the upper opaque if something of the lowers would show in it.
    fn hide_below(&self, moved: &Side<'_>, there: &Side<'_>) -> Result<()> {
        if there.hides_something() {
            let upper = self.upper()?;
            let (parent, name) = (moved.fd.as_fd(), moved.name.bytes());
            self.with_descriptors(|| upper.set_opaque(parent, name))?;
        }
        Ok(())
    }

    /// Makes a directory in which nothing of the lowers shows opaque, if a record of its own would
    /// lead to them from any place. Returns whether that is so.
    fn end_redirect(moved: &Side<'_>) -> Result<bool> {
        let (parent, name) = (moved.fd.as_fd(), moved.name.bytes());
        if elsewhere::redirect(parent, name)?.is_none() {
            return Ok(false);
        }
        crate::sys::cred::enter_own();
        opaque::set_attr(parent, name)?;
        Ok(true)
    }

    /// Records where the lowers have their parts of a directory, as overlayfs does: by name alone
    /// if that will do, else by the path in the union of the lowers. At the old place the record
    /// leads to where they are anyway.
    fn record_redirect(
        &self, moved: &Side<'_>, there: &Side<'_>, inode: &Arc<Inode>,
    ) -> Result<()> {
        let path = inode.union_path();
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        // A directory that was made at that path since, or is opaque, has no parts there to look beside.
        let beside = moved.parent.stack();
        let is_beside = |layer| beside.iter().any(|part| part.layer == layer);
        let stack = inode.stack();
        let mut lowers = stack.iter().filter(|part| part.layer > 0);
        let is_sibling = Arc::ptr_eq(moved.parent, there.parent)
            && moved.parent.union_path_with(name) == path
            && lowers.all(|part| is_beside(part.layer));
        let value = if is_sibling {
            name.to_vec()
        } else {
            [b"/", path.as_slice()].concat()
        };
        crate::sys::cred::enter_own();
        elsewhere::set_redirect(moved.fd.as_fd(), moved.name.bytes(), &value)
    }

    /// The object is at its new place.
    pub(super) fn moved<'a>(
        &'a self, side: &Side<'_>, to: &Side<'_>, fate: Fate<'a>,
        completion: Option<&mut Completion<'a>>,
    ) {
        if let (Some(dir), false) = (
            side.inode.as_ref().and_then(|i| i.dir.as_ref()),
            matches!(fate, Fate::None),
        ) {
            dir.forget_names();
        }
        if side.is_dir() {
            Self::subdir_changed(side.parent, false);
            Self::subdir_changed(to.parent, true);
            self.moves
                .fetch_add(1, crate::sys::sync::atomic::Ordering::AcqRel);
        }
        let Some(inode) = &side.inode else { return };
        let mut lower = None;
        let mut completed = Vec::new();
        match (fate, completion) {
            (Fate::None, _) => {}
            (Fate::Copied(published), Some(completion)) => {
                completed = completion.commit(*published);
            }
            (Fate::Redirected, _) => lower = Some(Self::lower_place(inode)),
            (Fate::End | Fate::Copied(_), _) => {
                lower = Some(Self::lower_place(inode));
                if let Some(dir) = &inode.dir {
                    dir.stack.write().truncate(1);
                }
                // The directory is opaque by now if it has one.
                let _ = elsewhere::clear_redirect(to.fd.as_fd(), to.name.bytes());
            }
        }
        let from = (&**side.parent, side.name.bytes());
        if let Some(parent) = inode.move_alias(from, (to.parent, to.name.bytes()), lower) {
            self.forget(parent.id, 1);
        }
        self.clear_whiteouts(&completed);
    }
}
